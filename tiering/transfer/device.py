"""What the mover needs of a device: streams, copies, events. No ordering decision lives behind this interface."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvstore.slots import SlotMemory


class Event(Protocol):
    """A point in a stream. It completes when all work enqueued before it on that stream has ended."""


class Stream(Protocol):
    """A queue of work that runs in order. Work on different streams is unordered unless one waits for the other."""


class Device(Protocol):
    """Streams, copies and events of one device.

    Every call returns at once save `host_wait`, `close`, and `wait` on the compute stream of a device that cannot make it
    wait for its copies: there the caller does.
    All calls come from one thread, the one that owns the mover. `close` is idempotent.
    """

    @property
    def compute(self) -> Any:
        """The stream on which the engine runs the model."""

    def stream(self, name: str) -> Any:
        """Make a copy stream."""

    def copy(
        self,
        stream: Any,
        destination: SlotMemory,
        destination_slots: Sequence[int],
        source: SlotMemory,
        source_slots: Sequence[int],
        part: slice,
    ) -> None:
        """Enqueue the copy of slots, pairwise; both sequences have one length. `part`: which bytes of each slot."""

    def record(self, stream: Any) -> Any:
        """An event that completes when what is now enqueued on the stream has ended."""

    def wait(self, stream: Any, event: Any) -> None:
        """Later work on `stream` starts only after `event`, in whatever way the work before either has ended."""

    def query(self, event: Any) -> bool:
        """Whether the event has completed. Raises what the work before it raised."""

    def host_wait(self, event: Any) -> None:
        """Block the caller until the event has completed. Raises what the work before it raised."""

    def notify(self, event: Any, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, once the event has completed or failed. `wake` must only post."""

    def close(self) -> None:
        """Let enqueued work end, then release streams and threads."""
