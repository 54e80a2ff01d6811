"""What a PromQL query names, held against the metrics that there are. Not a parser: it reads names, labels and values."""

import re
from collections.abc import Iterator

from kvstore.admin.metric_table import METRICS, Metric

# of a scrape, and of every sample
OTHER_LABELS = {"instance", "job", "le"}
OTHER_NAMES = {"up"}
WORDS = {
    "and",
    "bool",
    "by",
    "group_left",
    "group_right",
    "ignoring",
    "offset",
    "on",
    "or",
    "unless",
    "without",
}
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
FUNCTIONS = {
    *("sum", "max", "min", "avg", "count", "topk", "sort_desc"),
    *("rate", "increase", "histogram_quantile"),
}

_TOKEN = re.compile(
    r"""(?P<matchers>\{[^}]*\}) | (?P<range>\[[^\]]*\]) | (?P<name>[A-Za-z_:][\w:]*) | (?P<open>\()
      | (?P<number>\d[\w.]*) | (?P<other>\S)""",
    re.VERBOSE,
)
_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*')


def sample_names() -> dict[str, Metric]:
    """All names that a query may use: those of histograms with what Prometheus appends."""
    names = {}
    for metric in METRICS:
        endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + ending: metric for ending in endings}
    return names


def problems_of(query: str) -> list[str]:
    """A sentence for each name, label or label's value in the query that does not exist."""
    return list(_problems(query))


def _problems(query: str) -> Iterator[str]:
    known = sample_names()
    tokens = [(match.lastgroup, match.group()) for match in _TOKEN.finditer(query)]
    used = [known[text] for kind, text in tokens if kind == "name" and text in known]
    labels = {label for metric in used for label in metric.labels} | OTHER_LABELS
    if not used:
        yield f"it asks for no metric: {query}"
    position = 0
    while position < len(tokens):
        kind, text = tokens[position]
        following = tokens[position + 1] if position + 1 < len(tokens) else (None, "")
        if kind == "name" and text in GROUPING:
            if following[0] == "open":
                end = next(place for place in range(position, len(tokens)) if tokens[place][1] == ")")
                asked = {token for kind, token in tokens[position + 2 : end] if kind == "name"}
                yield from (f"no metric in it has the label {label}: {query}" for label in asked - labels)
                position = end
        elif kind == "name" and text in known:
            if following[0] == "matchers":
                yield from _matchers(known[text], following[1])
                position += 1
        elif kind == "name" and text not in WORDS | OTHER_NAMES:
            grouped = following[1] in {"by", "without"}
            if text not in FUNCTIONS or not (following[0] == "open" or grouped):
                yield f"there is no {text}: {query}"
        elif kind == "matchers" and (position == 0 or tokens[position - 1][1] not in OTHER_NAMES):
            yield f"{text} stands behind no metric: {query}"
        position += 1


def _matchers(metric: Metric, text: str) -> Iterator[str]:
    inner = text[1:-1].strip()
    found = _MATCHER.findall(inner)
    if ",".join(f'{label}{sign}"{value}"' for label, sign, value in found) != re.sub(r"\s", "", inner):
        yield f"{text} is no list of matchers"
    for label, sign, value in found:
        if label in OTHER_LABELS:
            continue
        values = metric.labels.get(label, ())
        if label not in metric.labels:
            yield f"{metric.name} has no label {label}"
        elif values is not None:
            asked = value.split("|") if sign in {"=~", "!~"} else [value]
            yield from (
                f"{metric.name} has no {label}={one!r}"
                for one in asked
                if not any(re.fullmatch(one, known) for known in values)
            )
