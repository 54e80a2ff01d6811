"""The measurements of `make gpu-check`, every one of them at a tiny size on the CPU, and on a CUDA runtime without a GPU."""

import itertools
import random
import threading

import pytest

from benchmarks.gpu import copies, overlap
from benchmarks.gpu.links import CpuLink, CudaLink
from benchmarks.gpu.measurements import MEASUREMENTS
from benchmarks.gpu.shapes import SHAPES, layout
from engine.layer_groups import layer_groups
from engine.pool import DevicePool
from tests.tiering.virtual_cuda import COMPUTE, VirtualCuda
from tiering.transfer.virtual import VirtualDevice

SAID: list[str] = []


@pytest.mark.parametrize("name", ["copies", "overlap", "decode"])
def test_every_row_that_is_announced_is_measured(name):
    measurement = MEASUREMENTS[name]
    rows = list(measurement.measure("tiny", "rehearsal", "cpu", SAID.append))
    assert [row["name"] for row in rows] == measurement.names("tiny", "rehearsal")
    assert all(set(measurement.columns) - {"complaint"} <= row.keys() for row in rows)
    assert not [row["complaint"] for row in rows if row.get("complaint")]


def test_rows_that_need_no_disk_can_do_without_one():
    """The others, and the restart in a process of its own, are what tests/cli/test_bench_ttft.py is about."""
    ttft = MEASUREMENTS["ttft"]
    rows = list(ttft.measure("tiny", "rehearsal", "cpu", SAID.append, disk=False))
    expected = [name for name in ttft.names("tiny", "rehearsal") if not ttft.needs_disk(name)]
    assert [row["name"] for row in rows] == expected
    assert {row["tier"] for row in rows} == {"cold", "device", "host"}
    assert not [row["complaint"] for row in rows if row["complaint"]]


@pytest.mark.parametrize("size", SHAPES)
def test_no_two_rows_have_one_name(size):
    names = [
        name for shape in SHAPES[size] for each in MEASUREMENTS.values() for name in each.names(shape, size)
    ]
    assert len(set(names)) == len(names)


class Pools(VirtualCuda):
    """The pool's memory is the CPU's here; whatever is not page-locked is taken for the GPU's."""

    def _side(self, address, num_bytes):
        taken = range(address, address + num_bytes)
        locked = [one for one in self.locked.values() if one.start < taken.stop and taken.start < one.stop]
        assert all(one.start <= taken.start and taken.stop <= one.stop for one in locked)
        return not locked


@pytest.fixture
def cuda():
    runtime = Pools(VirtualDevice(random.Random(0).choice), runs_itself=True)
    with runtime.nothing_left():
        yield runtime


def test_the_rows_over_cuda(cuda):
    """Each row's copies, and the plain ones, are made as CUDA wants them, and everything is given back."""
    chosen = [case for case in copies.cases("tiny", "rehearsal") if case.block_tokens == 16]
    rows = list(copies.rows(CudaLink(cuda, lambda: COMPUTE), "cpu", chosen, num_bytes=1 << 17, repeats=1))
    assert [row["name"] for row in rows] == [case.name for case in chosen]
    block_bytes = rows[0]["block_bytes"]
    assert (1 << 17, 1) in cuda.copies, "the plain copy is one"
    assert (block_bytes, 1) in cuda.copies, "a scattered slot is one"
    assert (block_bytes // 4, 1) in cuda.copies, "so is a layer group of one"
    assert any(width == block_bytes // 4 and height > 1 for width, height in cuda.copies)


@pytest.mark.parametrize("make_link", [lambda _: CpuLink(), lambda cuda: CudaLink(cuda, lambda: COMPUTE)])
@pytest.mark.parametrize("up", [True, False])
def test_a_plain_copy_copies_all_of_the_pool(cuda, make_link, up):
    blocks = layout("tiny", 16)
    with DevicePool(blocks, 4) as pool, make_link(cuda).plain(pool) as plain:
        for slot in range(4):
            pool.view(slot)[:] = 1 + slot
        plain(up=False)
        if up:
            for slot in range(4):
                pool.view(slot)[:] = 99
            plain(up=True)
        assert [set(pool.view(slot).tolist()) for slot in range(4)] == [{1}, {2}, {3}, {4}]


def test_memory_that_cannot_be_locked_is_no_measurement(cuda):
    cuda.max_locked_bytes = 0
    chosen = copies.cases("tiny", "rehearsal")[:1]
    with pytest.raises(RuntimeError, match="page-locked"):
        list(copies.rows(CudaLink(cuda, lambda: COMPUTE), "cpu", chosen, num_bytes=1 << 17, repeats=1))


def test_what_is_hidden_is_what_a_hit_does_not_wait_for():
    """A promotion of 4 s of which a request waits for one."""
    seconds = {"device": [1.0, 1.0, 3.0], "one_group": [5.0] * 3, "groups": [2.0] * 3, "promotion": [4.0] * 3}
    row = overlap.row("tiny", 160, seconds)
    assert (row["hidden_with_one_group"], row["hidden_with_groups"]) == (0.0, 0.75)


def test_a_copy_that_takes_less_than_repeats_differ_by_says_nothing():
    seconds = {"device": [1.0, 1.0, 9.0], "one_group": [5.0] * 3, "groups": [2.0] * 3, "promotion": [4.0] * 3}
    row = overlap.row("tiny", 160, seconds)
    assert row["hidden_with_one_group"] is row["hidden_with_groups"] is None


def test_layer_groups_are_all_of_a_slot():
    case = copies.cases("demo", "quick")[0]
    shape = layout("demo", case.block_tokens)
    blocks = shape.block_bytes
    for groups in (1, 4, 7):
        edges = layer_groups(shape, groups, "cpu").parts
        assert len(edges) == groups
        assert (edges[0].start, edges[-1].stop) == (0, blocks)
        assert all(before.stop == after.start for before, after in itertools.pairwise(edges))
        assert {edge.start % (blocks // 30) for edge in edges} == {0}


def test_a_copy_that_fails_is_no_rate(cuda):
    cuda.refuses = lambda to: threading.current_thread() is threading.main_thread()
    chosen = copies.cases("tiny", "rehearsal")[:1]
    with pytest.raises(RuntimeError, match="told to fail"):
        list(copies.rows(CudaLink(cuda, lambda: COMPUTE), "cpu", chosen, num_bytes=1 << 17, repeats=1))
