"""One page with the curves of a sweep, complete in itself."""

from collections.abc import Sequence
from html import escape
from math import log
from typing import Final

from tiering.cli.simulate import MINIMUM, Run, curves, knee, knees
from tiering.cli.simulate_table import ttft_cells

_WIDTH: Final = 720
_HEIGHT: Final = 320
_LEFT: Final = 48
_RIGHT: Final = 150
_TOP: Final = 16
_LABEL: Final = 44.0
"""How far apart the sizes stand that are written below the curves, at least."""
_BOTTOM: Final = 40

_STYLE: Final = """\
:root { color-scheme: light dark; --page: #ffffff; --text: #1f2328; --faint: #59636e; --line: #d0d7de }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --text: #e6edf3; --faint: #9198a1; --line: #3d444d }
}
body { background: var(--page); color: var(--text); margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  font: 15px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif }
table { border-collapse: collapse } th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line) }
td { white-space: nowrap } .wide { overflow-x: auto }
svg text { fill: var(--text); font-size: 12px } svg .faint { fill: var(--faint) } .grid { stroke: var(--line) }
svg { max-width: 100%; height: auto }"""

_COLOURS: Final = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700")
_BEST_COLOUR: Final = "#8c959f"
_TIER_COLOURS: Final = {"device": "#0969da", "host": "#1a7f37", "disk": "#bc4c00"}
_NAME: Final = 300
"""Where bars begin, behind the names ..."""
_BAR: Final = 22
"""... and how far apart they are."""

Points = Sequence[tuple[int, float]]


def page(runs: Sequence[Run]) -> str:
    """HTML: for each trace its curves, where sizes were swept, and all figures."""
    parts = []
    for trace in dict.fromkeys(each.trace for each in runs):
        mine = [each for each in runs if each.trace == trace]
        first = mine[0].outcome
        parts.append(f"<h2>{escape(trace.name)}</h2>")
        parts.append(f"<p>{first.num_requests:,} requests, {first.num_blocks:,} blocks.</p>")
        lines = _curves(mine)
        if any(len(points) > 1 for points in lines.values()):
            parts.append("<h3>Blocks found, by size</h3>")
            parts.append(chart(lines, {policy: knee(points) for policy, points in lines.items()}))
            parts += [f"<p>{escape(line)}</p>" for line in knees(mine)]
        if any(len(each.outcome.hits_by_tier) > 1 for each in mine):
            parts += ["<h3>Where they were found</h3>", bars(mine)]
        parts += ["<h3>All figures</h3>", _table(mine)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>kvtide simulate</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>kvtide simulate</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _curves(runs: Sequence[Run]) -> dict[str, Points]:
    """By policy, and of MIN, the hit rate over the blocks of all tiers together."""
    best = {each.capacity_blocks: each.minimum_hit_rate for each in runs if each.minimum_hit_rate is not None}
    found: dict[str, Points] = dict(curves(runs))
    if best:
        found[MINIMUM] = sorted(best.items())
    return found


def chart(lines: dict[str, Points], marked: dict[str, int | None]) -> str:
    """Lines of hit rates over sizes, which stand by their logarithm, as SVG. `marked`: the size of each whose dot is large."""
    sizes = sorted({size for points in lines.values() for size, _ in points})
    most = max(rate for points in lines.values() for _, rate in points) or 1.0
    span = log(sizes[-1] / sizes[0]) or 1.0

    def at(size: int, rate: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * log(size / sizes[0]) / span
        return round(x, 1), round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * rate / most, 1)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{_in_words(lines)}">'
    ]
    for part in range(5):
        _, y = at(sizes[0], most * part / 4)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="faint" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{most * part / 4:.0%}</text>'
        )
    labelled = -_LABEL
    for size in sizes:
        x, _ = at(size, 0)
        if x - labelled < _LABEL:
            continue
        labelled = x
        parts.append(
            f'<text class="faint" x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{size:,}</text>'
        )
    parts.append(f'<text class="faint" x="{_LEFT}" y="{_HEIGHT - 4}">blocks of all tiers together</text>')
    colours = iter(_COLOURS * len(lines))
    ends: list[float] = []
    for policy, points in sorted(lines.items(), key=lambda curve: -curve[1][-1][1]):
        colour = _BEST_COLOUR if policy == MINIMUM else next(colours)
        places = [at(*point) for point in points]
        line = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        parts += [
            f'<circle cx="{x}" cy="{y}" r="{5 if size == marked.get(policy) else 2.5}" fill="{colour}">'
            f"<title>{escape(policy)}, {size:,} blocks: {rate:.2%}</title></circle>"
            for (size, rate), (x, y) in zip(points, places, strict=True)
        ]
        ends.append(max([places[-1][1] + 4, *(end + 14 for end in ends[-1:])]))
        text = f"{policy} {points[-1][1]:.1%}"
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{ends[-1]}" style="fill: {colour}">{escape(text)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def bars(runs: Sequence[Run]) -> str:
    """For each run a bar of the blocks that were found, by tier, as SVG."""
    most = max(each.outcome.hit_rate for each in runs) or 1.0
    height = _TOP + _BAR * len(runs) + _BOTTOM
    told = "; ".join(_bar_in_words(each) for each in runs)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" aria-label="{escape(told)}">']
    for at, each in enumerate(runs):
        y, x = _TOP + _BAR * at, float(_NAME)
        sizes = " + ".join(f"{size:,}" for size in each.sizes if size)
        parts.append(
            f'<text x="{_NAME - 8}" y="{y + 13}" text-anchor="end">{escape(each.policy)}, {sizes}</text>'
        )
        for tier, hits in each.outcome.hits_by_tier.items():
            width = (_WIDTH - _NAME - 60) * hits / max(1, each.outcome.num_blocks) / most
            title = f"{tier}: {hits / max(1, each.outcome.num_blocks):.1%}"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR - 6}" fill="{_TIER_COLOURS[tier]}">'
                f"<title>{title}</title></rect>"
            )
            x += width
        parts.append(f'<text class="faint" x="{x + 6:.1f}" y="{y + 13}">{each.outcome.hit_rate:.1%}</text>')
    for at, (tier, colour) in enumerate(_TIER_COLOURS.items()):
        x = _NAME + 90 * at
        parts.append(f'<rect x="{x}" y="{height - 24}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{height - 14}">{tier}</text>')
    return "\n".join([*parts, "</svg>"])


def _bar_in_words(run: Run) -> str:
    total = max(1, run.outcome.num_blocks)
    tiers = ", ".join(f"{tier} {hits / total:.1%}" for tier, hits in run.outcome.hits_by_tier.items())
    return f"{run.policy}, {run.capacity_blocks:,} blocks: {tiers}"


def _in_words(lines: dict[str, Points]) -> str:
    told = (
        f"{policy}: " + ", ".join(f"{rate:.1%} at {size:,}" for size, rate in points)
        for policy, points in lines.items()
    )
    return escape("; ".join(told))


def _table(runs: Sequence[Run]) -> str:
    takes_time = any(each.ttft_s is not None for each in runs)
    heads = ["device", "host", "disk", "policy", "hits %", "by tier %", "written %", "of MIN %"]
    heads += ["TTFT s, p50", "p99"] if takes_time else []
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
            *(ttft_cells(each) if takes_time else ()),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(rows) + "</table></div>"
