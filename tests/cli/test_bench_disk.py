"""`kvtide bench disk` as a user runs it, and the KV that it measures with."""

import json
from pathlib import Path

import numpy as np
import pytest

from kvstore.disk.page_cache import drop, share_absent
from kvstore.memory import MemoryStore
from tests.cli.test_bench_ttft import kvtide
from tiering.cli.disk_rows import gates
from tiering.cli.kv_blocks import kv_blocks


def is_on_a_disk(folder: Path) -> bool:
    """Whether files there can be out of memory."""
    (folder / "probe").write_bytes(bytes(1 << 16))
    drop(folder / "probe")
    return share_absent(folder / "probe") == 1


def test_every_row_is_measured_and_cold_rows_were_cold(tmp_path):
    rows_file = tmp_path / "rows.json"
    sizes = ["--model", "none", "--tokens", "128", "--copies", "1", "--repeats", "1", "--threads", "1,2"]
    done = kvtide("bench", "disk", *sizes, "--path", str(tmp_path), "--json", str(rows_file))
    if not is_on_a_disk(tmp_path):
        assert done.returncode == 2
        assert "--path" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    measured = json.loads(rows_file.read_text())
    rows = {(row["what"], row["state"], row["threads"]): row for row in measured["rows"]}
    for threads in (1, 2):
        for what in ("store", "lmdb", "file each"):
            assert min(rows[what, "cold", threads]["absent_share_all"]) >= 0.9
            assert min(rows[what, "cold", threads]["read_bytes_all"]) > 0
            assert max(rows[what, "warm", threads]["read_bytes_all"]) == 0
        assert ("memcpy", "warm", threads) in rows
    raw = {what for what, _, _ in rows if what.startswith("raw")}
    assert raw == {
        f"raw {mib} MiB, {place}" for mib in (1, 4) for place in ("buffers", "huge buffers", "slots")
    }
    assert all((what, "cold", threads) in rows for what in raw for threads in (1, 2, 4, 8))
    assert all(row["gb_per_s"] > 0 and len(row["gb_per_s_all"]) == 1 for row in rows.values())
    assert {gate["name"]: gate["bound"] for gate in measured["gates"]} == {
        "cold, by the best raw read": 1.25,
        "warm, a core": 1.1,
        "warm, all cores by one thread": pytest.approx(1.5, abs=0.5),
        "demotion, a core": 0.7,
        "cold, by the best raw read into the slots": None,
        "cold, by the best raw read into ordinary pages": None,
    }
    assert measured["kv"]["blocks"] == 8
    assert measured["kv"]["stored_bytes"] < 8 * measured["kv"]["block_bytes"]
    assert sum(measured["kv"]["records"].values()) == 8
    [demotion] = measured["demotions"]
    assert demotion["encodes"] is True, "a file that small says nothing against it"
    assert sum(demotion["records"].values()) == 16, "once without a sync, once with one"
    assert not list(tmp_path.glob("kvtide-*"))
    assert rows_file.with_suffix(".md").read_text().count("\n| ") == 2 * 2 + 6 + len(rows)


def row(what: str, state: str, threads: int, gb_per_s: float, gb_per_cpu_s: float = 1.0) -> dict[str, object]:
    return {
        "what": what,
        "state": state,
        "threads": threads,
        "gb_per_s": gb_per_s,
        "gb_per_cpu_s": gb_per_cpu_s,
    }


def test_gates_compare_the_best_with_the_best():
    """The store's best number of threads with the fastest of all raw reads; the processor's worst row with its bound."""
    rows = [
        *(row("store", "cold", threads, rate) for threads, rate in ((1, 1.0), (2, 3.0), (4, 2.5))),
        *(row("store", "warm", threads, rate, 1.3 - threads / 10) for threads, rate in ((1, 1.5), (2, 2.4))),
        *(
            row(f"raw {mib} MiB, buffers", "cold", n, 2.0 + mib / 10 - n / 100)
            for mib in (1, 4)
            for n in (1, 8)
        ),
        *(
            row(f"raw {mib} MiB, slots", "cold", n, 1.0 + mib / 10 - n / 100)
            for mib in (1, 4)
            for n in (1, 8)
        ),
        *(
            row(f"raw {mib} MiB, huge buffers", "cold", n, 2.0 * mib - n / 10)
            for mib in (1, 4)
            for n in (1, 8)
        ),
        row("demotion", "written", 1, 0.1, 0.69),
    ]
    values = {gate["name"]: (round(gate["value"], 3), gate["holds"]) for gate in gates(rows, cores=2)}
    assert values == {
        "cold, by the best raw read": (round(3 / 7.9, 3), False),
        "warm, a core": (1.1, True),
        "warm, all cores by one thread": (1.6, True),
        "demotion, a core": (0.69, False),
        "cold, by the best raw read into the slots": (round(3 / 1.39, 3), None),
        "cold, by the best raw read into ordinary pages": (round(3 / 2.39, 3), None),
    }


def test_the_kv_is_what_the_model_computes(tmp_path):
    """A block for each 16 tokens, the same each time, and copies of it have names of their own."""
    one = kv_blocks("random-tiny", 64, 0, tmp_path / "a", lambda _: None)
    other = kv_blocks("random-tiny", 64, 0, tmp_path / "b", lambda _: None)
    assert one.data.shape == (4, one.layout.block_bytes)
    assert one.layout.dtype == "bfloat16"
    assert one.refs == other.refs
    assert np.array_equal(one.data, other.data)
    assert np.abs(one.data.astype(int)).sum() > 0
    refs = one.copies(3)
    assert refs[:4] == one.refs
    assert len({ref.key for ref in refs}) == 12
    store = MemoryStore(one.namespace, one.layout, 24 * one.layout.block_bytes)
    store.put_many(refs, [*one.data] * 3)  # they are well formed
