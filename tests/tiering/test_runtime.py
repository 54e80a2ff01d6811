"""What the CUDA devices call is what cupy has, and what the stand-in of these tests has."""

import inspect

import pytest

from tests.tiering.virtual_cuda import CudaError, VirtualCuda
from tiering.transfer import runtime
from tiering.transfer.runtime import CudaRuntime
from tiering.transfer.virtual import VirtualDevice, VirtualMemory

FUNCTIONS = [name for name in vars(CudaRuntime) if not name.startswith("_")]


def num_parameters(function):
    """Of those that must be given, and of all."""
    parameters = [each for name, each in inspect.signature(function).parameters.items() if name != "self"]
    return sum(each.default is inspect.Parameter.empty for each in parameters), len(parameters)


@pytest.fixture
def cupy_runtime():
    pytest.importorskip("cupy")
    return runtime.cupy_runtime()


def test_there_are_functions_to_look_for():
    assert {"memcpyAsync", "memcpy2DAsync", "hostRegister", "eventQuery", "streamWaitEvent"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_cupy_has_the_function(cupy_runtime, name):
    """Its own functions tell their parameters in the first line of their docstrings."""
    told = getattr(cupy_runtime, name).__doc__.splitlines()[0].split(" -> ")[0]
    parameters = [each for each in told.partition("(")[2].rstrip(")").split(", ") if each]
    given = sum("=" not in each for each in parameters)
    assert (given, len(parameters)) == num_parameters(getattr(CudaRuntime, name)), told


def test_cupy_has_the_numbers(cupy_runtime):
    assert cupy_runtime.memcpyDefault == runtime.MEMCPY_DEFAULT
    assert cupy_runtime.streamNonBlocking == runtime.STREAM_NON_BLOCKING
    assert cupy_runtime.eventBlockingSync == runtime.EVENT_BLOCKING_SYNC
    assert cupy_runtime.eventDisableTiming == runtime.EVENT_DISABLE_TIMING
    assert cupy_runtime.hostAllocPortable == runtime.HOST_PORTABLE
    assert issubclass(cupy_runtime.CUDARuntimeError, RuntimeError)


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy.cuda", None)
    with pytest.raises(ValueError, match=r"pip install 'kvtide\[cuda\]'"):
        runtime.cupy_runtime()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_so_has_the_stand_in(name):
    assert num_parameters(getattr(VirtualCuda, name)) == num_parameters(getattr(CudaRuntime, name))


# ---- the stand-in punishes what CUDA would


@pytest.fixture
def cuda():
    return VirtualCuda(VirtualDevice(lambda ready: ready[0]))


@pytest.fixture
def memory():
    return VirtualMemory(16, 1024, page_locked=True)


def copy_all(cuda, memory, to):
    cuda.memcpyAsync(to.address, memory.address, 16 * 1024, runtime.MEMCPY_DEFAULT, 0)


def test_memory_that_is_not_locked_cannot_be_copied(cuda, memory):
    pool = cuda.owns(VirtualMemory(16, 1024, page_locked=False))
    with pytest.raises(AssertionError, match="not page-locked"):
        copy_all(cuda, memory, pool)


def test_nor_can_what_was_locked_in_two_pieces(cuda, memory):
    pool = cuda.owns(VirtualMemory(16, 1024, page_locked=False))
    half = memory.address + 8 * 1024
    cuda.locked = {memory.address: range(memory.address, half), half: range(half, half + 8 * 1024)}
    with pytest.raises(CudaError, match="InvalidValue"):
        copy_all(cuda, memory, pool)


def test_a_range_that_is_locked_already_or_no_whole_page_is_refused(cuda):
    cuda.hostRegister(4096, 8192, 0)
    with pytest.raises(CudaError, match="AlreadyRegistered"):
        cuda.hostRegister(8192, 4096, 0)
    with pytest.raises(CudaError, match="InvalidValue"):
        cuda.hostRegister(1 << 20 | 1, 4096, 0)
    with pytest.raises(CudaError, match="InvalidResourceHandle"):
        cuda.hostUnregister(8192)


def test_handles_that_do_not_exist_are_refused(cuda):
    for call in (cuda.streamDestroy, cuda.streamSynchronize, cuda.eventQuery, cuda.eventDestroy):
        with pytest.raises(CudaError, match="InvalidResourceHandle"):
            call(99)
