"""The threads that compute on the CPU with the one that calls."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Final

import numpy as np
import torch

from kvstore.closing import Closing
from kvstore.cores import num_cores

from .native import watching

_STAY_TICKS: Final = 800_000
"""Of the processor's clock, that a thread stays awake for more work: some tenths of a millisecond. Between two calls of a layer less
goes by; to wake a thread would take half as long as what it then does."""

_NAP_S: Final = 5e-5


class Team(Closing):
    """As many threads in all as torch has, but no more than there are cores: they wait for each other awake. For one caller at a time."""

    def __init__(self, most: int | None = None) -> None:
        """`most`: threads in all; None is the cores that this process may use."""
        self._most = num_cores() if most is None else most
        self._others: ThreadPoolExecutor | None = None
        self._seats: list[_Seat] = []

    def run(self, work: Callable[..., object], *given: Any) -> None:
        """Have every thread do `work(*given)`, which must release the GIL to be of use; until all have.

        It must be all done where fewer do it: where no thread may be begun, and when the interpreter ends.
        """
        self._meet(min(torch.get_num_threads(), self._most) - 1)
        seats = self._seats
        try:
            for seat in seats:
                seat.give(work, given)
            work(*given)
        finally:
            self._wait()
        if any(seat.is_refused for seat in seats):
            self.close()
        for seat in seats:
            seat.tell()

    def _wait(self) -> None:
        """Until all are done, and only then raise what a signal raises meanwhile: they compute in memory that the caller would give back."""
        interrupt: BaseException | None = None
        for seat in self._seats:
            is_done = False
            while not is_done:
                try:
                    seat.wait()
                    is_done = True
                except BaseException as error:  # noqa: BLE001 - raised below
                    interrupt = error
        if interrupt is not None:
            raise interrupt

    def close(self) -> None:
        """End the threads. The next run would begin others."""
        if self._others is not None:
            self._others.shutdown(cancel_futures=True)  # what is left there was refused, and done by others
        self._others, self._seats = None, []

    def _meet(self, num_others: int) -> None:
        if num_others != len(self._seats):
            self.close()
            if num_others:
                self._others = ThreadPoolExecutor(num_others, thread_name_prefix="kvtide-team")
                self._seats = [_Seat(self._others) for _ in range(num_others)]


class _Seat:
    """One of the other threads: it stays for a while after its work, and only where it has gone another one is begun.

    _counts: int64, of the work that was given and of the work that is done; at most one more.   _is_taken: whether a thread stays,
    which it says under the lock, as what is given then will be done.   is_refused: no thread could be begun.
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads, self._watch = threads, watching()
        self._counts = np.zeros(2, np.int64)
        self._lock, self._is_taken = Lock(), False
        self._work: tuple[Callable[..., object], tuple[Any, ...]] | None = None
        self._error: BaseException | None = None
        self.is_refused = False

    def give(self, work: Callable[..., object], given: tuple[Any, ...]) -> None:
        """Work for the thread, which may have begun before this returns."""
        self._work, self._error = (work, given), None
        with self._lock:
            self._counts[0] += 1
            begins, self._is_taken = not self._is_taken, True
        if begins:
            try:
                self._threads.submit(self._stay)
            except RuntimeError:  # no thread may be begun any more, or there are too many
                self._work, self._is_taken, self.is_refused = None, False, True
                self._counts[1] += 1

    def wait(self) -> None:
        """Until it is done."""
        given, ticks = int(self._counts[0]), _STAY_TICKS
        while not self._watch(self._counts[1:].ctypes.data, given - 1, ticks):
            time.sleep(_NAP_S)  # it has no core, or much to do: this one is not kept from it any longer
            ticks = 0

    def tell(self) -> None:
        """Raise what the work has raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _stay(self) -> None:
        while True:
            assert self._work is not None, "nothing was given"
            work, given = self._work
            try:
                work(*given)
            except BaseException as error:  # noqa: BLE001 - it is the caller's to raise
                self._error = error
            self._work = work = given = None  # type: ignore[assignment]  # whoever waits may free it
            done = int(self._counts[1]) + 1
            self._counts[1] = done
            self._watch(self._counts.ctypes.data, done, _STAY_TICKS)
            with self._lock:
                if self._counts[0] == done:
                    self._is_taken = False
                    return
