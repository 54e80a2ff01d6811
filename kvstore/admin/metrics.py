"""What `GET /metrics` answers: a cache's figures in Prometheus' text format."""

import math
import platform
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kvstore.admin.http_figures import HttpFigures
from kvstore.admin.metric_table import METRICS, Metric
from kvstore.admin.version import own_version

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Found = Iterator[tuple[tuple[str, ...], Any]]


def exposition(stats: Mapping[str, Any], http: HttpFigures | None = None) -> bytes:
    """All metrics for which there are figures, as `GET /metrics` answers them with CONTENT_TYPE.

    stats: what `Engine.stats()` gives, or `{"cache": TieredCache.stats()}`. What it lacks, or what is None in it or of
    another type than it should be, is left out, with the whole family if nothing of it is left. Changes nothing, blocks
    on nothing and keeps nothing: any thread may call it.
    """
    registry = CollectorRegistry()
    registry.register(
        _Figures(
            {
                **stats,
                "build": {"version": own_version(), "python": platform.python_version()},
                "http": _by_route(http),
            }
        )
    )
    return generate_latest(registry)


def nameless(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The same figures without the names of tenants: those that have one are counted with all others, as "*"."""
    engine = stats.get("engine", {})
    kept: dict[str, Any] = {}
    for name, figures in engine.get("tenants", {}).items():
        label = name if name == "" else "*"
        kept[label] = _sum_of(kept[label], figures) if label in kept else figures
    return {**stats, "engine": {**engine, "tenants": kept}} if kept else dict(stats)


def _sum_of(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping):
        return {name: _sum_of(value, other[name]) for name, value in one.items()}
    return one + other


class _Figures(Collector):
    """A snapshot as Prometheus' families, for one answer."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self._figures = figures

    def describe(self) -> list[Family]:
        """Nothing: else the registry would collect once more, to know the names."""
        return []

    def collect(self) -> Iterator[Family]:
        for metric in METRICS:
            family = _FAMILIES[metric.kind](metric, self._figures)
            if family.samples:
                yield family


# --- by kind --------------------------------------------------------------------------------------------------------


def _counter(metric: Metric, figures: Mapping[str, Any]) -> Family:
    family = CounterMetricFamily(metric.name, metric.help, labels=list(metric.labels))
    for labels, value in _numbers(metric, figures):
        family.add_metric(labels, value)
    return family


def _gauge(metric: Metric, figures: Mapping[str, Any]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=list(metric.labels))
    for labels, value in _numbers(metric, figures):
        family.add_metric(labels, value)
    return family


def _info(metric: Metric, figures: Mapping[str, Any]) -> Family:
    """1, and what it says is in the labels; as a gauge, which an info is in the text format."""
    family = GaugeMetricFamily(metric.name, metric.help, labels=list(metric.labels))
    for _, facts in _walk(metric, figures):
        if isinstance(facts, Mapping) and any(facts.get(label) is not None for label in metric.labels):
            known = [facts.get(label) for label in metric.labels]
            family.add_metric(["" if fact is None else str(fact) for fact in known], 1.0)
    return family


def _histogram(metric: Metric, figures: Mapping[str, Any]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=list(metric.labels))
    for labels, value in _walk(metric, figures):
        match value:
            case {"bounds": [*bounds], "counts": [*counts], "sum": int() | float() as total} if len(
                counts
            ) == len(bounds) + 1 and _are_numbers([*bounds, *counts]):
                ends = [*(_end(bound) for bound in bounds), "+Inf"]
                family.add_metric(labels, list(zip(ends, accumulate(counts), strict=True)), total)
    return family


def _end(bound: float) -> str:
    """A bucket's upper bound as a label's value."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]  # prometheus_client's own, untyped


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


_FAMILIES = {"counter": _counter, "gauge": _gauge, "info": _info, "histogram": _histogram}


# --- what is where in the figures -----------------------------------------------------------------------------------


def _numbers(metric: Metric, figures: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    for labels, value in _walk(metric, figures):
        sample = metric.read(value)
        if sample is not None and not math.isnan(sample):
            yield labels, sample


def _walk(metric: Metric, figures: Mapping[str, Any]) -> Found:
    """What lies at the metric's path, with the values of its labels."""
    path = metric.source.split(".") if metric.source else []
    return _below(metric, figures, path, ())


def _below(metric: Metric, node: Any, path: list[str], labels: tuple[str, ...]) -> Found:
    if not path:
        yield labels, node
    elif isinstance(node, Mapping):
        head, rest = path[0], path[1:]
        if not head.startswith("{"):
            if head in node:
                yield from _below(metric, node[head], rest, labels)
            return
        known = metric.labels[head[1:-1]]
        for value in node if known is None else known:
            if value in node:
                yield from _below(metric, node[value], rest, (*labels, str(value)))
            elif not rest and metric.kind == "counter":
                yield (*labels, str(value)), 0


def _by_route(http: HttpFigures | None) -> dict[str, Any] | None:
    """The endpoint's figures as the table's paths find them."""
    if http is None:
        return None
    requests: dict[str, dict[str, dict[str, int]]] = {}
    for (route, method, status), count in http.requests.items():
        requests.setdefault(route, {}).setdefault(method, {})[str(status)] = count
    return {"requests": requests, "listeners": http.listeners, "running_jobs": http.running_jobs}
