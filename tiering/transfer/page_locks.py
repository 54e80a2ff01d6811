"""Host memory that the GPU's copy engines reach by themselves."""

from tiering.transfer.runtime import HOST_PORTABLE, CudaRuntime


class PageLocks:
    """What is page-locked, and until when. Any thread may lock; unlocking waits for nobody."""

    def __init__(self, runtime: CudaRuntime) -> None:
        """To be made on a thread whose CUDA device is the one that is meant."""
        self._runtime = runtime
        self._ordinal = runtime.getDevice()
        self._locked: list[int] = []

    def lock(self, address: int, num_bytes: int) -> None:
        """Page-lock whole pages. Raises RuntimeError with CUDA's words, most often because too much is locked already.

        A copy may not reach from what was locked by one call into what was locked by another.
        """
        self._runtime.setDevice(self._ordinal)
        self._runtime.hostRegister(address, num_bytes, HOST_PORTABLE)
        self._locked.append(address)

    def unlock_all(self) -> None:
        """Unlock everything. No copy may be in flight. Idempotent."""
        self._runtime.setDevice(self._ordinal)
        while self._locked:
            self._runtime.hostUnregister(self._locked.pop())
