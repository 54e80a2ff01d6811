"""What /metrics answers: all figures, under names that keep Prometheus' conventions, and nothing for what is not there."""

import copy
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from kvstore import MissReason
from kvstore.admin.http_figures import HttpFigures
from kvstore.admin.metric_table import METRICS
from kvstore.admin.metrics import CONTENT_TYPE, exposition
from tests.kvstore import figures

BY_NAME = {metric.name: metric for metric in METRICS}
LABELS = {
    "tier",
    "reason",
    "transfer",
    "state",
    "route",
    "method",
    "code",
    "codec",
    "decision",
    "outcome",
    "verdict",
    "why",
    "tenant",
}
UNITS = {
    "bytes": "_bytes",
    "seconds": "_seconds",
    "ratio": "_ratio",
    "watts": "_watts",
    "celsius": "_celsius",
    "bytes per second": "_bytes_per_second",
}


HTTP = HttpFigures(requests={("/admin/v1/prefixes/{key}", "GET", 200): 5}, listeners=2, running_jobs=1)


def families_of(stats, http=None):
    """Families by the name that they are scraped under."""
    parsed = text_string_to_metric_families(exposition(stats, http).decode())
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in parsed
        if family.samples
    }


def samples_of(stats, http=None):
    """Values by the sample's name and its labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families_of(stats, http).values()
        for sample in family.samples
    }


# --- names ----------------------------------------------------------------------------------------------------------


def test_no_name_twice():
    assert len(BY_NAME) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_keep_the_conventions(metric):
    assert metric.name.startswith("kvtide_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_info") == (metric.kind == "info")
    bare = metric.name.removesuffix("_total")
    suffix = UNITS.get(metric.unit)
    assert suffix is None or bare.endswith(suffix)
    assert suffix is not None or not bare.endswith(tuple(UNITS.values()))
    assert metric.help.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_labels_are_few_and_bounded(metric):
    if metric.kind != "info":  # these have one sample
        assert set(metric.labels) <= LABELS
    placeholders = [part[1:-1] for part in metric.source.split(".") if part.startswith("{")]
    assert placeholders == ([] if metric.kind == "info" else list(metric.labels))


# --- what is answered -----------------------------------------------------------------------------------------------


def test_everything_is_there_under_its_name_type_and_labels():
    found = families_of(figures.everything(), HTTP)
    assert set(found) == set(BY_NAME)
    for name, family in found.items():
        metric = BY_NAME[name]
        assert family.type == ("gauge" if metric.kind == "info" else metric.kind)
        assert family.documentation == metric.help
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)
            for label, value in sample.labels.items():
                assert label == "le" or (known := metric.labels[label]) is None or value in known


def test_the_content_type_is_the_text_formats():
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    assert exposition(figures.everything()).endswith(b"\n")


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        (("kvtide_prompt_tokens_total",), 1000),
        (("kvtide_cached_tokens_total", ("tier", "host")), 96),
        (("kvtide_missed_tokens_total", ("reason", "never_seen")), 600),  # asked for by the enum
        (("kvtide_missed_tokens_total", ("reason", "not_a_whole_block")), 80),  # and by its value
        (("kvtide_replies_total", ("reason", "length")), 2),
        (("kvtide_replies_total", ("reason", "error")), 0),
        (("kvtide_draining",), 0),
        (("kvtide_slots", ("state", "free"), ("tier", "host")), 14),
        (("kvtide_slots", ("state", "retired"), ("tier", "host")), 1),
        (("kvtide_evicted_blocks_total", ("tier", "device")), 5),
        (("kvtide_transfer_busy_seconds_total", ("transfer", "promote")), 0.25),
        (("kvtide_transfer_in_flight_blocks", ("transfer", "write")), 2),
        (("kvtide_failed_load_blocks_total", ("reason", "overdue")), 2),
        (("kvtide_tier_ready", ("tier", "disk")), 1),
        (("kvtide_disk_off",), 0),
        (("kvtide_store_damaged_records_total", ("reason", "damaged_checksum")), 2),
        (("kvtide_store_damaged_records_total", ("reason", "damaged_length")), 0),
        (("kvtide_gpu_utilization_ratio",), 0.93),
        (("kvtide_gpu_info", ("driver", "580.1"), ("name", "NVIDIA H100 80GB HBM3")), 1),
        (("kvtide_engine_info", ("attention", "sdpa")), 1),
        (("kvtide_http_running_jobs",), 1),
        (
            (
                "kvtide_http_requests_total",
                ("code", "200"),
                ("method", "GET"),
                ("route", "/admin/v1/prefixes/{key}"),
            ),
            5,
        ),
    ],
    ids=str,
)
def test_figures_come_through(sample, value):
    assert samples_of(figures.everything(), HTTP)[sample] == pytest.approx(value)


def test_histograms_are_cumulative():
    samples = samples_of(figures.everything())
    at_most = [
        samples["kvtide_ttft_seconds_bucket", ("le", end), ("tier", "none")]
        for end in ("0.01", "0.1", "1.0", "+Inf")
    ]
    assert at_most == [0, 1, 3, 3]
    assert samples["kvtide_ttft_seconds_count", ("tier", "none")] == 3
    assert samples["kvtide_ttft_seconds_sum", ("tier", "disk")] == 9.0
    assert samples["kvtide_queue_seconds_count",] == 5
    assert ("kvtide_ttft_seconds_count", ("tier", "host")) not in samples, "nobody was served from there yet"


def test_every_reason_is_there_from_the_start():
    """Else the first increase of each would be lost: a rate needs a point before it."""
    stats = figures.everything()
    stats["engine"]["missed_tokens"] = {}
    samples = samples_of(stats)
    assert [samples["kvtide_missed_tokens_total", ("reason", reason)] for reason in MissReason] == [0] * len(
        MissReason
    )


# --- what is not there ----------------------------------------------------------------------------------------------


def test_without_reasons_and_transfers_the_rest_is_there():
    found = set(families_of(figures.without_reasons()))
    absent = {
        "kvtide_prompt_tokens_total",
        "kvtide_cached_tokens_total",
        "kvtide_missed_tokens_total",
        "kvtide_lookup_requests_total",
        "kvtide_lookup_blocks_total",
        "kvtide_lookup_hit_blocks_total",
        "kvtide_replies_total",
        "kvtide_draining",
        "kvtide_failed",
        "kvtide_ttft_seconds",
        "kvtide_queue_seconds",
        "kvtide_load_seconds",
        "kvtide_block_bytes",
        "kvtide_block_tokens",
        "kvtide_removed_blocks_total",
        "kvtide_departed_entries",
        "kvtide_events_total",
    }
    prefixes = (
        "kvtide_transfer_",
        "kvtide_gpu_",
        "kvtide_http_",
        "kvtide_load_",
        "kvtide_admission_",
        "kvtide_tenant_",
    )
    absent |= {name for name in BY_NAME if name.startswith(prefixes)}
    assert found == set(BY_NAME) - absent


def test_a_bare_cache_has_only_a_caches():
    found = families_of({"cache": figures.cache()})
    by_source = {metric.name: metric.source for metric in METRICS}
    assert set(found) == {name for name, source in by_source.items() if source.startswith(("cache", "build"))}


def test_without_a_disk_nothing_is_said_of_a_store():
    stats = figures.everything()
    del stats["cache"]["store"]
    stats["disk_off"] = "another process has it"
    samples = samples_of(stats)
    assert not any(name.startswith("kvtide_store_") for name, *_ in samples)
    assert samples["kvtide_disk_off",] == 1


def test_a_figure_that_the_card_does_not_give_is_left_out_alone():
    stats = figures.everything()
    stats["gpu"]["power_w"] = stats["gpu"]["pcie"]["read_bytes_per_s"] = None
    assert set(families_of(figures.everything())) - set(families_of(stats)) == {
        "kvtide_gpu_power_watts",
        "kvtide_gpu_pcie_read_bytes_per_second",
    }


def test_of_nothing_there_is_the_version():
    assert set(families_of({})) == {"kvtide_build_info"}


# --- whatever the figures are ---------------------------------------------------------------------------------------

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


def places_in(node, path=()):
    """Every place in nested dicts, inner ones first."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from places_in(value, (*path, key))
        yield (*path, key)


PLACES = list(places_in(figures.everything()))


@given(st.dictionaries(st.sampled_from(PLACES), junk, max_size=6))
def test_odd_figures_cost_their_own_samples_and_nothing_else(odd):
    stats = copy.deepcopy(figures.everything())
    for path, value in odd.items():
        node = stats
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[path[-1]] = value
    found = families_of(stats)
    assert set(found) <= set(BY_NAME)
    touched = {metric.name for metric in METRICS if any(path[0] in metric.source for path in odd)}
    assert "kvtide_build_info" in found
    assert {name for name in BY_NAME if not name.startswith("kvtide_http")} - touched - {
        "kvtide_engine_info",
        "kvtide_disk_off",
    } <= set(found)


@given(st.text(), st.text(max_size=8), st.integers(100, 599))
def test_labels_are_escaped(route, method, status):
    http = HttpFigures(requests={(route, method, status): 1})
    [sample] = families_of({}, http)["kvtide_http_requests_total"].samples
    assert sample.labels["code"] == str(status)
    if not {"\r", "\x85", "\u2028"} & set(route + method) and route.isprintable() and method.isprintable():
        assert (sample.labels["route"], sample.labels["method"]) == (route, method)


def test_it_leaves_the_global_registry_alone_and_starts_no_thread():
    before, threads = len(list(REGISTRY.collect())), threading.active_count()
    exposition(figures.everything(), HTTP)
    assert len(list(REGISTRY.collect())) == before
    assert threading.active_count() == threads
    assert b"python_gc" not in exposition({})


def test_a_scrape_stays_small():
    """Labels are bounded: the number of samples depends on histograms' bounds and the endpoint's routes alone."""
    assert len(samples_of(figures.everything(), HTTP)) < 400
