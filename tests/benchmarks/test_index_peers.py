"""What can be tested of `make index-peers` without the peers: kvtide's own worker, the turns, the report."""

from dataclasses import replace

import pytest

from benchmarks.peers.index.__main__ import cannot, figures_of, samples
from benchmarks.peers.index.contenders import CONTENDERS
from benchmarks.peers.index.report import gates, report
from benchmarks.peers.index.rows import cases, leaves
from benchmarks.peers.index.worker import Bench
from benchmarks.workloads_index import PROMPT_TOKENS

MACHINE = {"commit": "c0ffee", "cpu": "an abacus", "cores": 2, "python": "3.11"}


@pytest.fixture(scope="module")
def bench():
    bench = Bench("benchmarks.peers.index.systems.kvtide", "Index", "Offload", 0)
    bench._cases["few leaves"] = leaves(64, 0)
    return bench


def test_kvtide_answers_every_row_of_the_paths_right(bench):
    bench.load("paths")
    rows = cases(0)["paths"].rows
    answers = [bench.sample(number)["tokens"] for number in range(len(rows))]
    assert answers == [row.least_tokens for row in rows]
    assert PROMPT_TOKENS in answers
    bench._index._core.check()


def test_a_wrong_answer_is_no_sample(bench, monkeypatch):
    bench.load("few leaves")
    case = bench._case
    wrong = tuple(replace(row, least_tokens=1024, most_tokens=1024) for row in case.rows)
    monkeypatch.setattr(bench, "_case", replace(case, rows=wrong))
    with pytest.raises(AssertionError, match="it answers 16 tokens, not 1024"):
        bench.sample(0)


def test_there_are_as_many_leaves_after_a_sample_as_before(bench):
    bench.load("few leaves")
    residency = bench._index._holdings.residency

    def num_leaves():
        return int((residency.live & (residency.num_children == 0)).sum())

    before = num_leaves()
    for number in (0, 1, 0, 1):
        bench.sample(number)
    assert num_leaves() == pytest.approx(before, abs=2)
    bench._index._core.check()


def test_host_memory_takes_a_prompt_and_finds_it(bench):
    bench.load("host with room")
    assert [bench.sample(number)["tokens"] for number in (0, 1)] == [PROMPT_TOKENS] * 2
    bench._index._core.check()


class Answering:
    """A worker that answers what it is given, and then fails."""

    def __init__(self, answers, asked) -> None:
        self._answers, self._asked = iter(answers), asked

    def ask(self, what, argument):
        self._asked.append((id(self), what, argument))

    def answer(self):
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return {"us": answer}


def test_contenders_take_turns_and_one_that_fails_stops_nobody():
    asked = []
    one = Answering([1.0, 2.0, 3.0, 4.0], asked)
    other = Answering([9.0, RuntimeError("no")], asked)
    took = samples({"one": one, "other": other}, 7, 1, warm_up=1, repeats=3)
    assert took == {"one": [2.0, 3.0, 4.0], "other": "failed: no"}
    assert [who for who, *_ in asked] == [id(who) for who in (one, other, other, one, one, one)]


def test_slow_samples_are_few():
    slow = Answering([300_000.0] * 20, [])
    assert len(samples({"slow": slow}, 0, 1, warm_up=1, repeats=15)["slow"]) == 5


def test_what_has_no_part_in_a_case_is_named_with_the_reason():
    some = cases(0)
    assert not cannot(CONTENDERS["kvtide"], "leaves 100000", some["leaves 100000"])
    assert "too long" in cannot(CONTENDERS["vllm"], "leaves 100000", some["leaves 100000"])
    assert "host memory" in cannot(CONTENDERS["sglang-rust"], "host full", some["host full"])


def test_a_gate_says_how_many_times_as_long_a_peer_takes_and_the_report_which_do_not_hold():
    cells = {
        "kvtide": figures_of([1.0, 2.0, 3.0]),
        "sglang-rust": figures_of([8.0, 8.0, 8.0]),
        "vllm": figures_of([1.0, 1.0, 1.0]),
        "sglang-python": figures_of("could not be installed: no room"),
    }
    systems = {
        name: {"title": CONTENDERS[name].title, "meaning": "what it means.", "version": "1"} for name in cells
    }
    rows = [{"row": "a row", "case": "paths", "calls": 1, "cells": cells}]
    found = gates(rows, systems)
    assert [(gate["value"], gate["holds"]) for gate in found] == [(4.0, True), (0.5, False)]
    figures = {"command": "this", "environment": MACHINE, "repeats": 3, "warm_up": 1}
    text = report({**figures, "systems": systems, "rows": rows, "gates": found})
    assert (
        "| a row | 2.0 (1.2 to 2.8) | 8.0 (8.0 to 8.0) | 1.0 (1.0 to 1.0) | could not be installed |" in text
    )
    assert "* SGLang RadixCache (Python), could not be installed: no room (a row)" in text
    assert "faster in 1 of 2" in text
    assert "* a row: vLLM KVCacheManager, CPUOffloadingManager by kvtide: 0.5" in text
