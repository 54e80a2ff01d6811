"""Engines that choose between loading and computing: what is late, what is told of it, and what the next start knows."""

import json

from kvstore.layers import FaultStore, Gate, Hang
from tests.engine.engines import BLOCK_BYTES, GREEDY, engine_on, tokens, told, until


def test_what_a_slow_disk_has_not_brought_in_time_is_computed_and_kept_when_it_comes(
    tiny_llama_dir, reference, tmp_path
):
    """The read hangs until the test says otherwise; what loads take is told by hand, so that it is not waited for long."""
    prompt, gate, layers = tokens(0, 100), Gate(), []

    def wrap(store):
        layers.append(FaultStore(store))
        return layers[-1]

    with engine_on(tiny_llama_dir, tmp_path, load="auto", wrap_store=wrap) as engine:
        engine.generate(prompt, GREEDY)
        engine.demote("disk")
        for _ in range(20):
            engine._tiers.chooser.costs.loaded("disk", 6 * BLOCK_BYTES, 1e-6)
        layers[0].faults = [Hang(gate, on="read")]
        result = engine.generate(prompt, GREEDY)
        assert gate.wait_until_reached(60)
        assert told(result.cache_report)[0] == ("late", 96)
        assert result.usage.cached_tokens == 0
        assert (result.decision.num_blocks, result.decision.of_blocks) == (6, 6)
        assert result.decision.took_s >= result.decision.deadline_s > 0
        assert result.decision.error > 0
        assert result.cache_report.decision == result.decision
        report = engine.requests()[0]
        assert report.decision == result.decision
        stats = engine.stats()
        assert stats["cache"]["failed_loads"] == {"late": 6}
        assert stats["engine"]["missed_tokens"]["late"] == 96
        assert stats["cache"]["tiers"]["disk"]["ready"], "one that is late may come yet"
        assert stats["cache"]["load_or_compute"]["came_late"] == 0
        gate.open()
        until(lambda: engine.stats()["cache"]["load_or_compute"]["came_late"] == 1)
        assert engine.stats()["cache"]["tiers"]["host"]["indexed"] == 6, "all of them were kept"
        again = engine.generate(prompt, GREEDY)
        assert again.usage.cached_by_tier["device"] == 96
    assert result.token_ids == again.token_ids == reference(prompt)


def test_what_was_learned_is_known_after_a_restart(tiny_llama_dir, tmp_path, caplog):
    prompt = tokens(0, 100)
    with engine_on(tiny_llama_dir, tmp_path, load="auto") as engine:
        engine.generate(prompt, GREEDY)
        for _ in range(20):
            engine._tiers.chooser.costs.loaded("disk", 6 * BLOCK_BYTES, 1000.0)
        learned = engine._tiers.chooser.costs.as_json()
    [kept] = (tmp_path / "v1" / "costs").iterdir()
    assert json.loads(kept.read_text())["costs"] == learned
    with engine_on(tiny_llama_dir, tmp_path, load="auto") as engine:
        first = engine.generate(prompt, GREEDY)
        assert (first.decision.num_blocks, first.decision.of_blocks) == (0, 6), "it need not try the disk"
        assert told(first.cache_report)[0] == ("computed_sooner", 96)
    assert not caplog.records
    kept.write_text("{")
    with engine_on(tiny_llama_dir, tmp_path, load="auto") as engine:
        assert engine.generate(prompt, GREEDY).usage.cached_by_tier["disk"] == 96, (
            "nothing is known: it is tried"
        )
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert str(kept) in record.getMessage()
    assert json.loads(kept.read_text())["costs"]["loads"]["disk"], "the next one knows again"


def test_who_does_not_choose_keeps_nothing(tiny_llama_dir, tmp_path):
    with engine_on(tiny_llama_dir, tmp_path, load="always") as engine:
        assert engine.generate(tokens(0, 100), GREEDY).decision is None
    assert not (tmp_path / "v1" / "costs").exists()
