"""Reasons that need something to go wrong below the engine: each is made to happen, to files and copies that are real."""

import struct
from pathlib import Path

import pytest
import xxhash

from engine import SamplingParams
from kvstore import ErrorBefore, FaultStore, Gate, Hang
from kvstore.metas import metas_of
from kvstore.reasons import MissReason
from tests.engine.engines import BLOCK, engine_on, tokens, told, until
from tiering.transfer.faults import FaultDevice

SHORT = SamplingParams(max_tokens=2, ignore_eos=True)
PROMPT = tokens(1, 3 * BLOCK + 5)
HEAD_BYTES = 152 + 4 * BLOCK  # what its checksum covers; see docs/block-format.md


def resealed(record, at, changed):
    """The record with other bytes in its header, whose checksum is right."""
    head = bytearray(record[:HEAD_BYTES])
    head[at : at + len(changed)] = changed
    return bytes(head) + struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(head))) + record[HEAD_BYTES + 8 :]


DAMAGE = {
    MissReason.DAMAGED_CHECKSUM: lambda record: record[:-1] + bytes([record[-1] ^ 1]),
    MissReason.DAMAGED_LENGTH: lambda record: record[:-1],
    MissReason.DAMAGED_HEADER: lambda record: record[:40] + bytes([record[40] ^ 1]) + record[41:],
    MissReason.WRONG_IDENTITY: lambda record: resealed(record, 72, bytes(32)),
    MissReason.UNKNOWN_FORMAT: lambda record: resealed(record, 8, struct.pack("<H", 2)),
    MissReason.MISSING_BASELINE: lambda record: resealed(record, 10, b"\x03"),
}


def middle(store):
    """The second of the three blocks that are there, and access to its record."""
    metas = {meta.key: meta for meta in metas_of(store)}
    [last] = metas.keys() - {meta.parent_key for meta in metas.values()}
    return metas[last].parent_key, store.raw()


@pytest.fixture
def damaged(tiny_llama_dir, tmp_path, request):
    """An engine whose disk has the prompt, and of it a block in the middle that fails the check."""
    stores = []
    with engine_on(tiny_llama_dir, tmp_path / "kv", wrap_store=lambda s: stores.append(s) or s) as engine:
        engine.generate(PROMPT, SHORT)
        engine.demote("disk")
        key, records = middle(stores[0])
        records.write(key, DAMAGE[request.param](records.read(key)))
        yield engine


@pytest.mark.parametrize("damaged", DAMAGE, ids=str, indirect=True)
def test_which_check_a_record_failed(damaged, request):
    reason = request.node.callspec.params["damaged"].value
    report = damaged.generate(PROMPT, SHORT).cache_report
    assert told(report) == [("disk", 16), (reason, 16), ("disk", 16), ("not_a_whole_block", 5)]
    assert damaged.stats()["engine"]["missed_tokens"][reason] == 16


def test_what_follows_a_lost_block_until_somebody_computes_it(tiny_llama_dir, tmp_path):
    """The request that read it has gone when the record turns out to be damaged: nobody computes the block."""
    gate, layers = Gate(), []

    def layer(store):
        layers.append(FaultStore(store))
        return layers[0]

    with engine_on(tiny_llama_dir, tmp_path / "kv", wrap_store=layer) as engine:
        engine.generate(PROMPT, SHORT)
        engine.demote("disk")
        key, records = middle(layers[0])
        records.corrupt(key)
        layers[0].faults = [Hang(on="read", gate=gate)]
        handle = engine.submit(PROMPT, SHORT)
        assert gate.wait_until_reached(60)
        handle.cancel()
        handle.result(60)
        gate.open()
        hole = [("damaged_checksum", 16), ("behind_a_loss", 16), ("not_a_whole_block", 5)]
        until(lambda: told(engine.explain(PROMPT))[1:] == hole)
        assert told(engine.generate(PROMPT, SHORT).cache_report)[1:] == hole
        assert engine.explain(PROMPT).cached_tokens == 48, "it was computed again"


def test_what_the_disk_may_have_is_computed_until_it_is_listed_and_not_written_again(
    tiny_llama_dir, tmp_path
):
    with engine_on(tiny_llama_dir, tmp_path / "kv") as engine:
        engine.generate(PROMPT, SHORT)
    gate = Gate()

    def layer(store):
        return FaultStore(store, [Hang(on="scan", gate=gate)])

    with engine_on(tiny_llama_dir, tmp_path / "kv", wrap_store=layer, restore_wait_s=0.0) as engine:
        assert gate.wait_until_reached(60)
        report = engine.generate(PROMPT, SHORT).cache_report
        assert told(report) == [("not_restored", 48), ("not_a_whole_block", 5)]
        assert report.difference is None
        gate.open()
        until(lambda: not engine.stats()["cache"]["tiers"]["disk"]["restoring"])
        disk = engine.stats()["cache"]["tiers"]["disk"]
        assert (disk["found_blocks"], disk["restored_blocks"], disk["blocks"]) == (3, 3, 3)
        engine.flush()
        assert engine.stats()["cache"]["tiers"]["disk"]["written_bytes"] == 0
        assert told(engine.explain(PROMPT)) == [("device", 48), ("not_a_whole_block", 5)]


def test_a_copy_up_that_fails(tiny_llama_dir):
    devices = []

    def layer(device):
        devices.append(FaultDevice(device))
        return devices[0]

    with engine_on(tiny_llama_dir, wrap_device=layer) as engine:
        engine.generate(PROMPT, SHORT)
        engine.demote("host")
        devices[0].faults = [ErrorBefore(on="up")]
        report = engine.generate(PROMPT, SHORT).cache_report
        assert told(report) == [("copy_failed", 48), ("not_a_whole_block", 5)]
        assert report.parts[0].tier == "host"


def test_every_reason_is_made_to_happen():
    """Here or in one of these: who adds a reason must show that it is told."""
    others = ("explain", "engine", "quotas", "load_or_compute")
    pages = (*(f"test_{name}.py" for name in others), Path(__file__).name)
    told = "\n".join(Path(__file__).with_name(name).read_text("utf-8") for name in pages)
    assert [
        reason
        for reason in MissReason
        if f'"{reason.value}"' not in told and f"MissReason.{reason.name}" not in told
    ] == []
