"""That the benchmark of quotas runs whole on a few requests, and what its gates look at."""

import json
import sys

from benchmarks import quotas
from benchmarks.leaf_order import TRACES


def test_it_runs_and_tells_its_gates(tmp_path, monkeypatch):
    target = tmp_path / "quotas.json"
    trace = TRACES / "mooncake_conversation_h1.jsonl.zst"
    sizes = f"--trace {trace} --requests 30 --blocks 100 200 400 --flood 2 --flood-blocks 8 --repeats 1"
    monkeypatch.setattr(sys, "argv", ["quotas", *sizes.split(), "--json", str(target)])
    assert quotas.main() == 0
    figures = json.loads(target.read_text())
    assert [(row["admission"], row["flood"]) for row in figures["rows"]] == [("all", 2), ("adaptive", 2)]
    assert [row["tiers"] for row in figures["two_tenants"]] == [1, 3]
    gates = {gate["name"]: gate for gate in figures["gates"]}
    assert gates["one tenant: hits that differ"]["holds"]
    worst = min(row["with by alone"] for row in figures["rows"])
    assert gates["hit rate with quotas, by that alone, the worst row"]["value"] == worst
    assert target.with_suffix(".md").exists()
