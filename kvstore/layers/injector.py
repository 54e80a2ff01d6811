"""Which call is struck by which fault."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from kvstore.layers.faults import Delay, ErrorAfter, ErrorBefore, Fault, Gate, Hang


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault that is due at one call."""

    fault: Fault
    operation: str
    random: Random
    """For what else is left to chance: which block, which byte."""


class Injector:
    """The faults of one layer: draws which of them are due at a call, and counts those that acted.

    A draw depends on the seed, the fault's place in the list, the operation and the number of the call, and
    on nothing else: the n-th read meets the same faults with the same seed, whichever thread makes it and
    whatever was written meanwhile. Any thread may call all of it.
    """

    def __init__(
        self,
        possible: Mapping[type[Fault], tuple[str, ...]],
        *,
        seed: int,
        sleep: Callable[[float], object],
        failed: Callable[[str], Exception],
        closed: Callable[[str], Exception],
    ) -> None:
        """`possible`: which operations a kind of fault can strike here. `failed` makes the error of a fault
        that names none, `closed` that of a call which hung when the layer was closed.
        """
        self._possible = possible
        self._seed, self._sleep, self._make_failed, self._make_closed = seed, sleep, failed, closed
        self._lock = threading.Lock()  # numbers and counts are read and written together
        self._faults: tuple[Fault, ...] = ()
        self._numbers: Counter[str] = Counter()
        self._counts: Counter[tuple[type[Fault], str]] = Counter()
        self._hanging_at: list[Gate] = []
        self._closed = False

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults in force; they strike a call in this order."""
        return self._faults

    def replace(self, faults: Iterable[Fault]) -> None:
        """Put other faults in force, and number calls from one again.

        Raises ValueError for one that cannot act here; then nothing has changed.
        """
        faults = tuple(faults)
        for fault in faults:
            self._check(fault)
        with self._lock:
            self._faults = faults
            self._numbers.clear()

    def _check(self, fault: Fault) -> None:
        can = self._possible.get(type(fault))
        if can is None:
            kinds = ", ".join(kind.__name__ for kind in self._possible)
            raise ValueError(f"{fault!r} cannot be injected here; what can: {kinds}")
        if wrong := set(fault.operations) - set(can):
            name = type(fault).__name__
            raise ValueError(f"{name} strikes {', '.join(can)}, but on names {', '.join(sorted(wrong))}")

    def draw(self, operation: str) -> list[Strike]:
        """Number a call and answer the faults that are due at it, in order; none once the layer is closed."""
        with self._lock:
            if self._closed or not self._faults:
                return []
            faults = self._faults
            self._numbers[operation] += 1
            number = self._numbers[operation]
        strikes = []
        for place, fault in enumerate(faults):
            operations = fault.operations or self._possible[type(fault)]
            if operation in operations and (fault.first is None or number <= fault.first):
                random = Random(f"{self._seed}/{place}/{operation}/{number}")
                if random.random() < fault.chance:
                    strikes.append(Strike(fault, operation, random))
        return strikes

    def count(self, strike: Strike) -> None:
        """The fault acts: there was something to damage, or somebody to raise at."""
        with self._lock:
            self._counts[type(strike.fault), strike.operation] += 1

    def injected(self, kind: type[Fault], on: str | None) -> int:
        """How often faults of a kind have acted, on one operation or on all."""
        with self._lock:
            return sum(
                count
                for (other, operation), count in self._counts.items()
                if issubclass(other, kind) and on in (None, operation)
            )

    def before(self, strike: Strike) -> None:
        """Act, if this is a fault that acts before the work, whatever the work is."""
        match strike.fault:
            case Delay(seconds):
                self.count(strike)
                self._sleep(seconds)
            case Hang(gate):
                self.count(strike)
                self._hang(gate, strike.operation)
            case ErrorBefore():
                self.count(strike)
                raise self.error(strike)

    def error(self, strike: Strike) -> Exception:
        """What a fault that raises is to raise."""
        if isinstance(strike.fault, ErrorBefore | ErrorAfter) and strike.fault.error is not None:
            return strike.fault.error()
        return self._make_failed(f"an injected fault: {strike.operation} failed")

    def _hang(self, gate: Gate, operation: str) -> None:
        with self._lock:  # against close(): it must find the gate, or this call find it closed
            self._hanging_at.append(gate)
        try:
            gate.wait(unless=lambda: self._closed)
        finally:
            with self._lock:
                self._hanging_at.remove(gate)
        if self._closed:
            raise self._make_closed(f"closed while it hung: {operation}")

    def close(self) -> None:
        """Let what hangs end, by raising; nothing is injected from here on."""
        with self._lock:
            self._closed = True
            gates = tuple(self._hanging_at)
        for gate in gates:
            gate.look_again()
