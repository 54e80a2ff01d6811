"""Memory that holds one block a slot. Who may use which slot is decided elsewhere (one slot table a tier)."""

from typing import Any, Protocol


class SlotMemory(Protocol):
    """A fixed number of equal slots, each one run of `block_bytes` bytes. Any thread may call all of it.

    `kvstore.slot_laws` has the laws that every implementation keeps.
    """

    @property
    def num_slots(self) -> int: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def address(self) -> int:
        """Where the first slot begins; each begins where the one before it ends. For copies by address."""

    @property
    def piece_slots(self) -> int:
        """One copy may reach over several slots, but not from one piece of so many, counted from the first, to the next."""

    def view(self, slot: int) -> Any:
        """The slot's bytes: writable, one-dimensional, uint8, C-contiguous. No copy, does not block.

        A numpy array for memory that the CPU addresses, the device library's array otherwise. Raises
        IndexError unless 0 <= slot < num_slots. Memory that can be closed must not be asked afterwards, and raises
        AssertionError if it is; views from before stay valid.
        """
        ...
