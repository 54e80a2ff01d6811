"""The laws that every slot memory keeps, for the tests of memories here and elsewhere.

A law is a function `law(memory)` that raises AssertionError where the memory breaks it. Give each one a fresh memory of
two slots or more; those that can be closed keep `CLOSING_LAWS` as well:

    @pytest.mark.parametrize("law", SLOT_LAWS)
    def test_law(law):
        law(MyMemory(num_slots=4, block_bytes=1000))

Views are written and read as a caller would: numpy arrays, or tensors of a device library that can be assigned to and has
`tolist`.
"""

import threading
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

from kvstore.slots import SlotMemory

Law: TypeAlias = Callable[[SlotMemory], None]


class ClosableMemory(SlotMemory, Protocol):
    """Slot memory that can be given back."""

    def close(self) -> object: ...


# ---- what laws are written with ------------------------------------------------------------------------


def holds(memory: SlotMemory, slot: int, value: int) -> bool:
    """Whether every byte of the slot is `value`."""
    return bytes(memory.view(slot).tolist()) == bytes([value]) * memory.block_bytes


def number(memory: SlotMemory) -> None:
    """Fill each slot with a value of its own, by `value_of`."""
    for slot in range(memory.num_slots):
        memory.view(slot)[:] = value_of(slot)


def value_of(slot: int) -> int:
    """What `number` writes into a slot: never zero, and another value in the next slot."""
    return slot % 251 + 1


def assert_numbered(memory: SlotMemory, *, but: int | None = None) -> None:
    """Each slot holds what `number` has written, save one perhaps."""
    for slot in range(memory.num_slots):
        assert slot == but or holds(memory, slot, value_of(slot)), f"slot {slot} was written to by another"


# ---- the laws ------------------------------------------------------------------------------------------


def a_slot_is_one_run_of_bytes(memory: SlotMemory) -> None:
    """All slots are there, of one size, and in the form that copies take."""
    assert memory.num_slots >= 2, "a memory of fewer than two slots shows little"
    assert memory.block_bytes >= 1
    for slot in range(memory.num_slots):
        view = memory.view(slot)
        assert tuple(view.shape) == (memory.block_bytes,), f"slot {slot} has the shape {tuple(view.shape)}"
        assert str(view.dtype).removeprefix("torch.") == "uint8", f"slot {slot} holds {view.dtype}"
        assert _is_contiguous(view), f"slot {slot} is not one run"


def views_are_no_copies(memory: SlotMemory) -> None:
    """What is written through one view is seen through all of its slot, those handed out before included."""
    for slot in (0, memory.num_slots - 1):
        before, after = memory.view(slot), memory.view(slot)
        for value in (1, 255):
            after[:] = value
            assert holds(memory, slot, value), "a later view does not show what was written"
            assert bytes(before.tolist()) == bytes(after.tolist()), "an earlier view shows something else"


def every_byte_is_kept(memory: SlotMemory) -> None:
    """A slot keeps whatever bytes it is given, in their order."""
    pattern = bytes((7 * i + 3) % 256 for i in range(memory.block_bytes))
    view = memory.view(1)
    view[:] = 0
    for i, byte in enumerate(pattern):
        view[i] = byte
    assert bytes(memory.view(1).tolist()) == pattern


def slots_share_no_byte(memory: SlotMemory) -> None:
    """Writing to one leaves all others as they are."""
    number(memory)
    assert_numbered(memory)
    for slot in (0, memory.num_slots // 2, memory.num_slots - 1):
        memory.view(slot)[:] = 0
        assert_numbered(memory, but=slot)
        memory.view(slot)[:] = value_of(slot)


def slots_outside_are_refused(memory: SlotMemory) -> None:
    """With an IndexError; a negative number does not count from the end."""
    number(memory)
    for slot in (-1, -memory.num_slots, memory.num_slots, memory.num_slots + 1, 1 << 40):
        try:
            memory.view(slot)
        except IndexError:
            continue
        raise AssertionError(f"slot {slot} of {memory.num_slots} was handed out")
    assert_numbered(memory)


def any_thread_may_use_a_slot(memory: SlotMemory) -> None:
    """Threads that write to slots of their own do not disturb each other."""
    errors: list[BaseException] = []

    def use(first: int) -> None:
        try:
            for _ in range(5):
                for slot in range(first, memory.num_slots, 2):
                    memory.view(slot)[:] = value_of(slot)
                    assert holds(memory, slot, value_of(slot)), f"slot {slot} was written to by another"
        except BaseException as error:  # noqa: BLE001 - raised again where the law is called
            errors.append(error)

    threads = [threading.Thread(target=use, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert_numbered(memory)


def slots_lie_behind_each_other(memory: SlotMemory) -> None:
    """From the address on, as far as a device library that copies by address takes for granted."""
    assert memory.piece_slots >= 1, "a piece has a slot at least"
    for slot in range(memory.num_slots):
        place = _address(memory.view(slot)) - memory.address
        assert place == slot * memory.block_bytes, f"slot {slot} lies {place} bytes behind the first"


def a_closed_memory_hands_out_nothing(memory: ClosableMemory) -> None:
    """Closing twice is safe. Views from before stay valid, as a copy may still be under way; there are no new ones."""
    view = memory.view(1)
    view[:] = 1
    memory.close()
    memory.close()
    assert bytes(view.tolist()) == bytes([1]) * memory.block_bytes
    view[:] = 2
    assert bytes(view.tolist()) == bytes([2]) * memory.block_bytes
    try:
        memory.view(1)
    except AssertionError:
        return
    raise AssertionError("a closed memory handed out a slot")


SLOT_LAWS: Final[tuple[Law, ...]] = (
    a_slot_is_one_run_of_bytes,
    views_are_no_copies,
    every_byte_is_kept,
    slots_share_no_byte,
    slots_outside_are_refused,
    slots_lie_behind_each_other,
    any_thread_may_use_a_slot,
)
CLOSING_LAWS: Final[tuple[Callable[[ClosableMemory], None], ...]] = (a_closed_memory_hands_out_nothing,)


def _is_contiguous(view: Any) -> bool:
    """Of a numpy array, or of a tensor."""
    return bool(view.is_contiguous() if hasattr(view, "is_contiguous") else view.flags.c_contiguous)


def _address(view: Any) -> int:
    return int(view.data_ptr() if hasattr(view, "data_ptr") else view.ctypes.data)
