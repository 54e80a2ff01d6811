"""What the CUDA devices need of CUDA: some functions of cupy.cuda.runtime, under their names there.

Streams, events and addresses are integers: cudaStream_t, cudaEvent_t, and pointers, as torch gives them too, so that
torch's kernels and these copies meet on the same streams. Every function that fails raises a RuntimeError.
"""

from typing import Final, Protocol

MEMCPY_DEFAULT: Final = 4
"""cudaMemcpyDefault: the driver knows from an address where it lies."""
STREAM_NON_BLOCKING: Final = 1
"""cudaStreamNonBlocking: does not wait for the legacy default stream, on which torch computes unless told otherwise."""
EVENT_BLOCKING_SYNC: Final = 1
"""cudaEventBlockingSync: a thread that waits sleeps."""
EVENT_DISABLE_TIMING: Final = 2
"""cudaEventDisableTiming: the cheapest event."""
HOST_PORTABLE: Final = 1
"""cudaHostRegisterPortable and cudaHostAllocPortable: locked for every context."""

SUCCESS: Final = 0
NOT_READY: Final = 600
"""cudaErrorNotReady, which eventQuery returns rather than raises."""


class CudaRuntime(Protocol):
    """See the module docstring. `cupy.cuda.runtime` is one; the tests have another that needs no GPU."""

    def getDevice(self) -> int: ...  # noqa: N802 - CUDA's names
    def setDevice(self, device: int, /) -> None: ...  # noqa: N802

    def streamCreateWithFlags(self, flags: int, /) -> int: ...  # noqa: N802
    def streamDestroy(self, stream: int, /) -> None: ...  # noqa: N802
    def streamSynchronize(self, stream: int, /) -> None: ...  # noqa: N802
    def streamWaitEvent(self, stream: int, event: int, flags: int = 0, /) -> None: ...  # noqa: N802

    def eventCreateWithFlags(self, flags: int, /) -> int: ...  # noqa: N802
    def eventDestroy(self, event: int, /) -> None: ...  # noqa: N802
    def eventRecord(self, event: int, stream: int, /) -> None: ...  # noqa: N802
    def eventQuery(self, event: int, /) -> int: ...  # noqa: N802
    def eventSynchronize(self, event: int, /) -> None: ...  # noqa: N802

    def memcpyAsync(self, to: int, fro: int, num_bytes: int, kind: int, stream: int, /) -> None: ...  # noqa: N802
    def memcpy2DAsync(  # noqa: N802
        self,
        to: int,
        to_pitch: int,
        fro: int,
        fro_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
        /,
    ) -> None: ...

    def hostRegister(self, address: int, num_bytes: int, flags: int, /) -> None: ...  # noqa: N802
    def hostUnregister(self, address: int, /) -> None: ...  # noqa: N802
    def hostAlloc(self, num_bytes: int, flags: int, /) -> int: ...  # noqa: N802
    def freeHost(self, address: int, /) -> None: ...  # noqa: N802


def cupy_runtime() -> CudaRuntime:
    """CUDA's own. Raises ValueError, with what to install, where cupy is missing."""
    try:
        from cupy.cuda import runtime
    except ImportError as error:
        raise ValueError(f"a CUDA device needs cupy: pip install 'kvtide[cuda]' ({error})") from error
    found: CudaRuntime = runtime
    return found
