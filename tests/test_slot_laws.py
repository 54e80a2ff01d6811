"""Every slot memory keeps every law: the tiers' own, the devices', and those that tests are made with."""

import ast
import threading
from pathlib import Path

import pytest

from engine.pool import DevicePool
from kvstore import slot_laws
from kvstore.block import BlockLayout
from kvstore.host import HostSlab
from kvstore.slot_laws import CLOSING_LAWS, SLOT_LAWS
from tests.tiering.slot_arrays import SlotArray
from tiering.transfer.faults import _Watched
from tiering.transfer.virtual import VirtualMemory

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = BlockLayout(num_layers=2, num_kv_heads=1, head_dim=8, dtype="bfloat16", block_tokens=4)

CLOSING = {
    "host slab": lambda: HostSlab(5, 300),
    "host slab of large slots": lambda: HostSlab(2, 9000),
    "device pool": lambda: DevicePool(LAYOUT, 3),
}
MEMORIES = {
    **CLOSING,
    "virtual device": lambda: VirtualMemory(4, 64, page_locked=False),
    "virtual host": lambda: VirtualMemory(4, 64, page_locked=True),
    "array of the tests": lambda: SlotArray(4, 1),
    "watched by the fault device": lambda: _Watched(SlotArray(4), lambda: None),
}


def over(memories):
    return pytest.mark.parametrize("make", memories.values(), ids=memories)


@pytest.mark.parametrize("law", SLOT_LAWS, ids=lambda law: law.__name__)
@over(MEMORIES)
def test_law(law, make):
    law(make())


@pytest.mark.parametrize("law", CLOSING_LAWS, ids=lambda law: law.__name__)
@over(CLOSING)
def test_closing_law(law, make):
    law(make())


class Broken(SlotArray):
    """Breaks one promise, which is named."""

    def __init__(self, promise) -> None:
        super().__init__(4, 8)
        self.promise, self.closed = promise, False
        self.address += promise == "address"

    def view(self, slot):
        match self.promise:
            case "no copy":
                return super().view(slot).copy()
            case "disjoint":
                return self.bytes.reshape(-1)[4 * slot : 4 * slot + 8]
            case "refuses":
                return self.bytes[slot % 4]
            case "sizes":
                return super().view(slot)[:-1]
            case "one run":
                return self.bytes.T.reshape(-1)[::4]
            case "bytes":
                return super().view(slot).view("int8")
            case "order":
                self.bytes[slot, 3] = self.bytes[slot, 2]
            case "threads" if threading.current_thread() is not threading.main_thread():
                return self.bytes[0]
        return super().view(slot)

    def close(self):
        self.closed = True


CAUGHT_BY = {
    "no copy": slot_laws.views_are_no_copies,
    "disjoint": slot_laws.slots_share_no_byte,
    "refuses": slot_laws.slots_outside_are_refused,
    "sizes": slot_laws.a_slot_is_one_run_of_bytes,
    "one run": slot_laws.a_slot_is_one_run_of_bytes,
    "bytes": slot_laws.a_slot_is_one_run_of_bytes,
    "order": slot_laws.every_byte_is_kept,
    "address": slot_laws.slots_lie_behind_each_other,
    "threads": slot_laws.any_thread_may_use_a_slot,
}


@pytest.mark.parametrize(("promise", "law"), CAUGHT_BY.items(), ids=CAUGHT_BY)
def test_a_memory_that_breaks_a_promise_breaks_its_law(promise, law):
    with pytest.raises(AssertionError):
        law(Broken(promise))
    assert set(CAUGHT_BY.values()) == set(SLOT_LAWS)


def test_a_memory_that_hands_out_slots_when_it_is_closed_breaks_a_law():
    for law in CLOSING_LAWS:
        with pytest.raises(AssertionError, match="handed out"):
            law(Broken("closing"))


def test_there_is_no_other_memory():
    """Whoever adds one puts it on trial above."""
    files = [file for package in ("kvstore", "tiering", "engine") for file in (ROOT / package).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    found = [
        node.name
        for node in nodes
        if isinstance(node, ast.ClassDef) and {"view", "block_bytes"} <= _names(node)
    ]
    # a row is of one slot, which nobody but the fault device sees
    assert sorted(found) == ["DevicePool", "HostSlab", "SlotMemory", "VirtualMemory", "_Row", "_Watched"]


def _names(of: ast.ClassDef) -> set[str]:
    """Methods, and attributes that are assigned to."""
    names = {node.name for node in ast.walk(of) if isinstance(node, ast.FunctionDef)}
    attributes = [node for node in ast.walk(of) if isinstance(node, ast.Attribute)]
    return names | {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
