"""Bytes by where they lie, for what is compiled."""

import ctypes
from typing import NamedTuple


class Span(NamedTuple):
    """Bytes that somebody else holds: whoever is given one is told until when."""

    address: int
    num_bytes: int

    @property
    def view(self) -> memoryview:
        """The bytes themselves, which it does not keep."""
        return memoryview((ctypes.c_ubyte * self.num_bytes).from_address(self.address)).cast("B")
