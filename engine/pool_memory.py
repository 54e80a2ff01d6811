"""Memory for the block pool of a CPU, taken from the system while weights are loaded, and after that."""

from contextlib import AbstractContextManager, nullcontext

from kvstore.block import BlockLayout
from kvstore.closing import Closing
from kvstore.pages import Pages, Taking

from .config import EngineConfig, Resources
from .out_of_memory import lower, memory_for, pool_setting
from .pool import DevicePool
from .sizes import available_memory_bytes
from .supported import Shape

_BESIDE_SHARE = 0.25
"""Of the memory that is left: a larger pool waits until weights are loaded, which may take twice their size meanwhile."""


class PoolMemory(Closing):
    """Gives the pool its memory, which a thread makes ready beside whatever else a start does. On CUDA it gives none.

    Closing it ends the thread; pools keep their memory.
    """

    def __init__(self, config: EngineConfig, chosen: Resources) -> None:
        """`chosen`: how `config` is decided before weights are loaded."""
        self._config, self._chosen = config, chosen
        self._layout: BlockLayout | None = None
        self._num_slots = 0
        self._pages: Pages | None = None
        self._taking: Taking | None = None

    @property
    def taken_bytes(self) -> int:
        """Of memory that counts as taken and is the pool's."""
        return 0 if self._taking is None else self._taking.taken_bytes

    def before_weights(self, shape: Shape) -> None:
        """Begin, unless that might leave too little for weights to be loaded. Raises OutOfMemory."""
        num_bytes = self._chosen.device_bytes
        if self._chosen.device != "cpu" or num_bytes is None:  # it is measured later
            return
        layout = shape.layout(self._chosen.kv_dtype, self._config.block_tokens)
        num_slots = num_bytes // layout.block_bytes
        if num_slots and num_bytes <= _BESIDE_SHARE * available_memory_bytes():
            self._begin(layout, num_slots)

    def pool(self, layout: BlockLayout, num_slots: int) -> DevicePool:
        """The pool, of as many slots as are wanted, and on the CPU of no more than it has begun with.

        Its pages are taken from the first slot on, and slots given out in that order: who uses one that is not taken yet takes it
        himself. Where the kernel cannot take pages that are in use all are taken before this returns. Raises OutOfMemory.
        """
        if self._chosen.device != "cpu":
            with memory_for(*self._told(num_slots)):
                return DevicePool(layout, num_slots, self._chosen.device)
        if layout != self._layout:
            self._begin(layout, num_slots)
        elif num_slots < self._num_slots:
            self._shrink(num_slots)
        if self._pages is not None and not self._pages.may_be_used_meanwhile:
            self.wait()
        return DevicePool(layout, self._num_slots, pages=self._pages)

    @property
    def left_bytes(self) -> int:
        """Of memory that will be the pool's, and does not count as taken yet."""
        return 0 if self._taking is None else self._taking.left_bytes

    def resting(self) -> AbstractContextManager[None]:
        """Nothing is taken meanwhile: a start that computes on all cores goes first."""
        return nullcontext() if self._taking is None else self._taking.resting()

    def wait(self) -> None:
        """Return when all pages are taken."""
        if self._taking is not None:
            self._taking.wait()

    def close(self) -> None:
        self._stop()
        self._pages = None

    def _stop(self) -> None:
        if self._taking is not None:
            self._taking.close()

    def _begin(self, layout: BlockLayout, num_slots: int) -> None:
        self._stop()
        with memory_for(*self._told(num_slots)):
            self._pages = Pages((num_slots + 1) * layout.block_bytes)
        self._layout, self._num_slots = layout, num_slots
        self._taking = Taking(self._pages, num_slots * layout.block_bytes)

    def _shrink(self, num_slots: int) -> None:
        assert self._layout is not None and self._pages is not None, "it has begun"
        self._stop()  # or it went on behind what is given back
        self._num_slots = num_slots
        self._pages.give_back((num_slots + 1) * self._layout.block_bytes)
        self._taking = Taking(self._pages, num_slots * self._layout.block_bytes)

    def _told(self, num_slots: int) -> tuple[str, str]:
        """What there is no memory for, and what to do."""
        setting = pool_setting(self._config, self._chosen.device)
        return f"a pool of {num_slots} blocks", lower(self._config, setting)
