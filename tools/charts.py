"""Bar charts as SVG: small, complete in themselves, readable on light and dark pages.

A chart brings its own background, and follows the reader's preference for dark pages where what shows it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _VALUES = 720, 92  # all in pixels; labels stand left of the bars, values right of them
_ROW, _BAR, _MARGIN, _HEAD = 26, 16, 16, 40
_TEXT_PX, _LETTER_PX = 13, 7.2

_STYLE = """\
.page { fill: #ffffff; stroke: #d0d7de } .text { fill: #1f2328 } .faint { fill: #59636e }
.ours { fill: #0969da } .other { fill: #aeb6bf }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; stroke: #3d444d } .text { fill: #e6edf3 } .faint { fill: #9198a1 }
  .ours { fill: #4493f8 } .other { fill: #59636e }
}"""


@dataclass(frozen=True)
class Bar:
    """One bar, its label, and what stands at its end."""

    label: str
    value: float
    """At least 0; all bars of a chart share a scale that begins at 0."""
    shown: str
    ours: bool = True
    """Whether it is kvtide's, or somebody's that it is compared with."""


def bar_chart(title: str, bars: Sequence[Bar], note: str = "") -> str:
    """Horizontal bars below each other, with a title above and a note in small print below.

    Raises ValueError without bars, or for a value below 0.
    """
    if not bars or min(bar.value for bar in bars) < 0:
        raise ValueError(f"a chart needs bars with values of at least 0: {title} has {len(bars)}")
    most = max(bar.value for bar in bars) or 1.0
    height = _HEAD + _ROW * len(bars) + (_ROW if note else 0) + _MARGIN // 2
    left = _MARGIN + max(round(_LETTER_PX * len(bar.label)) for bar in bars)
    room = _WIDTH - left - _VALUES - _MARGIN
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" role="img" font-size="{_TEXT_PX}" '
            "font-family=\"-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif\">"
        ),
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(in_words(bars))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>',
        _text(_MARGIN, _MARGIN + _TEXT_PX, title, "text", 'font-weight="600"'),
    ]
    for number, bar in enumerate(bars):
        top = _HEAD + _ROW * number
        middle = top + _BAR - 3
        length = max(1.0, room * bar.value / most)
        kind = "ours" if bar.ours else "other"
        parts += [
            _text(left - 8, middle, bar.label, "text", 'text-anchor="end"'),
            f'<rect class="{kind}" x="{left}" y="{top}" width="{length:.1f}" height="{_BAR}" rx="2"/>',
            _text(left + length + 6, middle, bar.shown, "text"),
        ]
    if note:
        parts.append(_text(_MARGIN, height - _MARGIN + 2, note, "faint", 'font-size="11"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def in_words(bars: Sequence[Bar]) -> str:
    """The same for who does not see the chart."""
    return "; ".join(f"{bar.label}: {bar.shown}" for bar in bars)


def _text(x: float, y: float, text: str, kind: str, more: str = "") -> str:
    attributes = f'class="{kind}" x="{x:.4g}" y="{y:.4g}" {more}'.rstrip()
    return f"<text {attributes}>{escape(text)}</text>"
