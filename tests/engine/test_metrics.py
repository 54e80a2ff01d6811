"""A real engine's figures as metrics: all of them, and with the values that they have."""

import re
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvstore.admin.metric_table import METRICS
from kvstore.admin.metrics import exposition
from tests.engine.engines import GREEDY, engine_on, tokens

# what is in stats() and is no metric, and why
NO_METRICS = {
    "engine.cached_tokens": "the sum of cached_tokens_by_tier",
    "cache.tiers.device.slots": "the sum over the states",
    "cache.tiers.host.slots": "the sum over the states",
    "cache.tiers.disk.written_by_read": "a query divides better, over the time that is asked about",
    "cache.retention.holds": "what they hold is kvtide_held_blocks",
    "cache.retention.most_held.device": "a share of the tier, which is a setting",
    "cache.retention.most_held.host": "the same",
    "cache.retention.most_held.disk_bytes": "the same",
    "cache.retention.terms": "times to live that are told apart",
    "attention": "a label of kvtide_engine_info",
    "flashinfer_off": "a sentence",
}


def leaves_of(node, path=()) -> Iterator[str]:
    """The paths of all that is not a dict; a histogram is one leaf."""
    for key, value in node.items():
        here = (*path, str(key))
        if isinstance(value, dict) and "bounds" not in value:
            yield from leaves_of(value, here)
        else:
            yield ".".join(here)


def patterns() -> list[str]:
    """The paths of all metrics, and what leads there, which is None or empty where there is nothing."""
    found = []
    for metric in METRICS:
        parts = [
            "|".join(metric.labels[part[1:-1]] or ["[^.]+"]) if part.startswith("{") else re.escape(part)
            for part in metric.source.split(".")
        ]
        found += [r"\.".join(f"(?:{part})" for part in parts[:end]) for end in range(1, len(parts) + 1)]
    return found


@pytest.fixture(scope="module")
def stats(tiny_llama_dir, tmp_path_factory):
    """Of an engine that has served, demoted, written and read."""
    with engine_on(tiny_llama_dir, tmp_path_factory.mktemp("disk")) as engine:
        prompt = tokens(1, 200)
        engine.generate(prompt, GREEDY)
        engine.demote("disk")
        engine.generate([prompt, tokens(2, 60)], GREEDY)
        engine.flush()
        yield engine.stats()


def test_every_figure_is_a_metric_or_is_named_with_a_reason(stats):
    """What a new figure is called, or why it is none, is decided when it is made: kvstore/admin/metric_table.py."""
    known = re.compile("|".join(patterns()))
    assert {leaf for leaf in leaves_of(stats) if not known.fullmatch(leaf)} <= set(NO_METRICS)


def test_what_is_no_metric_is_a_figure(stats):
    assert set(NO_METRICS) <= set(leaves_of(stats))


def test_the_values_are_the_figures(stats):
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exposition(stats).decode())
        for sample in family.samples
    }
    engine, cache = stats["engine"], stats["cache"]
    disk, store = cache["tiers"]["disk"], cache["store"]
    assert samples["kvtide_requests_total",] == engine["requests"] == 3
    assert samples["kvtide_prefilled_tokens_total",] == engine["prefilled_tokens"] > 0
    for state in ("free", "private", "indexed", "in_flight"):
        assert samples["kvtide_slots", state, "host"] == cache["tiers"]["host"][state]
    assert samples["kvtide_disk_written_bytes_total",] == disk["written_bytes"] > 0
    assert samples["kvtide_disk_read_bytes_total",] == disk["read_bytes"] > 0
    assert samples["kvtide_tier_ready", "disk"] == 1
    assert samples["kvtide_store_raw_bytes",] == store["raw_bytes"] > 0
    assert samples["kvtide_disk_off",] == 0


def test_a_path_that_nothing_has_is_found():
    """The first test can fail."""
    known = re.compile("|".join(patterns()))
    assert known.fullmatch("cache.tiers.host.evicted") and known.fullmatch("gpu")
    assert not known.fullmatch("cache.tiers.host.evictions")
    assert not known.fullmatch("cache.something")
