"""One page with the curves of a sweep, complete in itself."""

from collections.abc import Sequence
from html import escape
from math import log
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tiering.cli.simulate import Run

_WIDTH: Final = 720
_HEIGHT: Final = 320
_LEFT: Final = 48
_RIGHT: Final = 150
_TOP: Final = 16
_BOTTOM: Final = 40

_STYLE: Final = """\
:root { color-scheme: light dark; --page: #ffffff; --text: #1f2328; --faint: #59636e; --line: #d0d7de }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --text: #e6edf3; --faint: #9198a1; --line: #3d444d }
}
body { background: var(--page); color: var(--text); margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  font: 15px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif }
table { border-collapse: collapse } th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line) }
svg text { fill: var(--text); font-size: 12px } svg .faint { fill: var(--faint) } .grid { stroke: var(--line) }
svg { max-width: 100%; height: auto }"""

_COLOURS: Final = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700")
_BEST_COLOUR: Final = "#8c959f"

Points = Sequence[tuple[int, float]]


def page(runs: Sequence["Run"]) -> str:
    """HTML: for each trace its curves, where sizes were swept, and all figures."""
    parts = []
    for trace in dict.fromkeys(each.trace for each in runs):
        mine = [each for each in runs if each.trace == trace]
        first = mine[0].outcome
        parts.append(f"<h2>{escape(trace.name)}</h2>")
        parts.append(f"<p>{first.num_requests:,} requests, {first.num_blocks:,} blocks.</p>")
        curves = _curves(mine)
        if any(len(points) > 1 for points in curves.values()):
            parts.append(chart(curves))
        parts.append(_table(mine))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>kvtide simulate</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>kvtide simulate</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _curves(runs: Sequence["Run"]) -> dict[str, Points]:
    """By policy, and of MIN, the hit rate over the blocks of all tiers together."""
    curves: dict[str, dict[int, float]] = {}
    for each in runs:
        curves.setdefault(each.policy, {})[each.capacity_blocks] = each.outcome.hit_rate
        if each.minimum_hit_rate is not None:
            curves.setdefault("min", {})[each.capacity_blocks] = each.minimum_hit_rate
    return {policy: sorted(points.items()) for policy, points in curves.items()}


def chart(curves: dict[str, Points]) -> str:
    """Lines of hit rates over sizes, which stand by their logarithm, as SVG."""
    sizes = sorted({size for points in curves.values() for size, _ in points})
    most = max(rate for points in curves.values() for _, rate in points) or 1.0
    span = log(sizes[-1] / sizes[0]) or 1.0

    def at(size: int, rate: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * log(size / sizes[0]) / span
        return round(x, 1), round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * rate / most, 1)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{_in_words(curves)}">'
    ]
    for part in range(5):
        _, y = at(sizes[0], most * part / 4)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="faint" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{most * part / 4:.0%}</text>'
        )
    for size in sizes:
        x, _ = at(size, 0)
        parts.append(
            f'<text class="faint" x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{size:,}</text>'
        )
    parts.append(f'<text class="faint" x="{_LEFT}" y="{_HEIGHT - 4}">blocks of all tiers together</text>')
    colours = iter(_COLOURS * len(curves))
    ends: list[float] = []
    for policy, points in sorted(curves.items(), key=lambda curve: -curve[1][-1][1]):
        colour = _BEST_COLOUR if policy == "min" else next(colours)
        places = [at(*point) for point in points]
        line = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        ends.append(max([places[-1][1] + 4, *(end + 14 for end in ends[-1:])]))
        text = f"{policy} {points[-1][1]:.1%}"
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{ends[-1]}" style="fill: {colour}">{escape(text)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def _in_words(curves: dict[str, Points]) -> str:
    told = (
        f"{policy}: " + ", ".join(f"{rate:.1%} at {size:,}" for size, rate in points)
        for policy, points in curves.items()
    )
    return escape("; ".join(told))


def _table(runs: Sequence["Run"]) -> str:
    heads = ("device", "host", "disk", "policy", "hits %", "by tier %", "written %", "of MIN %")
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for each in runs:
        outcome = each.outcome
        share = 100 / max(1, outcome.num_blocks)
        cells = (
            *(f"{size:,}" for size in each.sizes),
            escape(each.policy),
            f"{100 * outcome.hit_rate:.2f}",
            " + ".join(f"{share * hits:.1f}" for hits in outcome.hits_by_tier.values()),
            ", ".join(f"{tier} {share * count:.1f}" for tier, count in outcome.writes_by_tier.items()),
            "" if each.minimum_hit_rate is None else f"{100 * each.share_of_minimum:.0f}",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "<table>" + "\n".join(rows) + "</table>"
