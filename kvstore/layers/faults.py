"""What can go wrong with a call, as values. What each does there is said by the layer that takes them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


class Gate:
    """Where calls hang until somebody opens it. Shut at first. Any thread may call all of it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = False
        self._hanging: set[object] = set()
        """A token for each call that hangs here; one that may go on is taken out before it has done so."""

    def open(self) -> None:
        """Let those go on who wait here, even if the gate is shut again at once, and whoever comes later."""
        with self._changed:
            self._open = True
            self._hanging.clear()
            self._changed.notify_all()

    def shut(self) -> None:
        """Stop whoever comes from now on."""
        with self._changed:
            self._open = False

    def wait_until_reached(self, timeout_s: float | None = None, *, by: int = 1) -> bool:
        """Whether so many calls hang here; waits for that, at most `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._hanging) >= by, timeout_s)

    def wait(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Come here and block until the gate is open, or until `unless` answers True after `look_again`."""
        with self._changed:
            if self._open:
                return
            me = object()
            self._hanging.add(me)
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: me not in self._hanging or unless())
            finally:
                self._hanging.discard(me)

    def look_again(self) -> None:
        """Have everybody who waits here ask again whether they still must."""
        with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong, and with which calls. Give a layer one of the subclasses.

    Calls are counted from one for each operation by itself, and anew whenever a layer is given faults.
    """

    on: str | tuple[str, ...] = ()
    """The operations that it strikes, one or several; the default is all that it can strike."""
    first: int | None = None
    """It strikes no call after the first so many; None is no end."""
    chance: float = 1.0
    """The probability with which it strikes a call; the layer's seed decides."""

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance must be between 0 and 1, not {self.chance}")
        if self.first is not None and self.first < 0:
            raise ValueError(f"first must be a number of calls or None, not {self.first}")

    @property
    def operations(self) -> tuple[str, ...]:
        """`on`, always as a tuple."""
        return (self.on,) if isinstance(self.on, str) else tuple(self.on)


@dataclass(frozen=True)
class Delay(Fault):
    """The call takes longer."""

    seconds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds < 0:
            raise ValueError(f"seconds must not be negative, got {self.seconds}")


@dataclass(frozen=True)
class Hang(Fault):
    """The call stops before its work until the gate opens, then goes on: a stall, if somebody opens it.

    If the layer is closed first, the call raises instead and its work is not done.
    """

    gate: Gate = field(default_factory=Gate)


@dataclass(frozen=True)
class ErrorBefore(Fault):
    """The call raises, and nothing of its work is done."""

    error: Callable[[], Exception] | None = None
    """Makes what is raised, anew each time; None is what the layer raises by itself."""


@dataclass(frozen=True)
class ErrorAfter(Fault):
    """The call raises, although all of its work is done."""

    error: Callable[[], Exception] | None = None
    """See ErrorBefore."""


@dataclass(frozen=True)
class ShortData(Fault):
    """The end of the data is missing."""


@dataclass(frozen=True)
class Garbage(Fault):
    """Some of the data is something else."""


@dataclass(frozen=True)
class FalseMiss(Fault):
    """A read says of a block that is there, and sound, that it is absent."""


@dataclass(frozen=True)
class DirtyMiss(Fault):
    """The buffers of misses are filled with junk, or half filled.

    They are undefined by contract: this finds who looks into them all the same.
    """
