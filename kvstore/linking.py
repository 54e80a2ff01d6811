"""Laying out what LLVM emits for one function, so that whoever loads it only has to copy it and fill in addresses.

For x86-64 it asks for nothing but whole addresses: its own, and those of functions of Python's and of the C library. Asked by
kvstore.compiling; kvstore.machine_code loads the result.
"""

import struct
from typing import Any, Final

import numpy as np

from kvstore.machine_code import ENTRY, SYMBOLS, UNIT, Image, image_bytes, object_bytes

_SECTION: Final = np.dtype(
    [
        *[("name", "<u4"), ("type", "<u4")],
        *[(name, "<u8") for name in ("flags", "address", "offset", "size")],
        *[("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entry_size", "<u8")],
    ]
)
_SYMBOL: Final = np.dtype(
    [
        *[("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2")],
        *[("value", "<u8"), ("size", "<u8")],
    ]
)
_MOVE: Final = np.dtype([("offset", "<u8"), ("kind", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])

_BEGIN: Final = b"\x7fELF\x02\x01\x01"
"""Of 64 bits, little-endian."""
_KIND: Final = b"\x01\x00\x3e\x00"
"""To be linked, for x86-64."""
_CONTENT, _SYMBOLS, _MOVES = 1, 2, 4
_WRITTEN, _IN_MEMORY = 0x1, 0x2
_WHOLE_ADDRESS: Final = 1
"""R_X86_64_64."""
_ELSEWHERE: Final = 0
_UNWINDING: Final = ".eh_frame"
"""For exceptions, of which none goes through this code."""


class _NotLinked(Exception):
    """It asks for more than is known here."""


def kept_code(code: bytes) -> bytes:
    """An object file as it is to be kept: laid out, or as it is where it cannot be, as for other processors."""
    try:
        return image_bytes(_Object(code).image())
    except _NotLinked:
        return object_bytes(code)


class _Object:
    """An object file in the format ELF."""

    def __init__(self, code: bytes) -> None:
        if not code.startswith(_BEGIN) or code[16:20] != _KIND:
            raise _NotLinked
        self._code = code
        (at,) = struct.unpack_from("<Q", code, 0x28)
        count, names = struct.unpack_from("<HH", code, 0x3C)
        self._sections = np.frombuffer(code, _SECTION, count, at)
        self._names = self._sections[names]
        [table] = self._sections[self._sections["type"] == _SYMBOLS]
        self._strings = self._sections[table["link"]]
        self._symbols = self._rows(table, _SYMBOL)
        self._content = bytearray()
        self._begins: dict[int, int] = {}
        """Of the sections that are laid out, by their numbers."""

    def image(self) -> Image:
        """All that is in memory, one section after the other."""
        for number, section in enumerate(self._sections):
            if section["flags"] & _IN_MEMORY and section["size"] and self._name(section) != _UNWINDING:
                self._lay(number, section)
        places = [
            place
            for section in self._sections
            if section["type"] == _MOVES
            for place in self._places(section)
        ]
        [entry] = (self._at(one) for one in self._symbols if self._symbol_name(one) == ENTRY)
        return Image(entry, np.array(places, np.int64).reshape(-1, 3), bytes(self._content))

    def _lay(self, number: int, section: Any) -> None:
        if section["flags"] & _WRITTEN or section["type"] != _CONTENT or section["align"] > UNIT:
            raise _NotLinked
        self._content += bytes(-len(self._content) % max(1, int(section["align"])))
        self._begins[number] = len(self._content)
        self._content += self._code[int(section["offset"]) :][: int(section["size"])]

    def _places(self, moves: Any) -> list[tuple[int, int, int]]:
        """Those of one section, as an image has them."""
        begin = self._begins.get(int(moves["info"]))
        if begin is None:
            return []
        return [(begin + int(move["offset"]), *self._target(move)) for move in self._rows(moves, _MOVE)]

    def _target(self, move: Any) -> tuple[int, int]:
        """Of which it is the address, and what is added."""
        symbol, added = self._symbols[move["symbol"]], int(move["addend"])
        if move["kind"] != _WHOLE_ADDRESS:
            raise _NotLinked
        if symbol["section"] != _ELSEWHERE:
            return 0, self._at(symbol) + added
        if (name := self._symbol_name(symbol)) not in SYMBOLS:
            raise _NotLinked
        return 1 + SYMBOLS.index(name), added

    def _at(self, symbol: Any) -> int:
        """Where what is in the image is there."""
        begin = self._begins.get(int(symbol["section"]))
        if begin is None:
            raise _NotLinked
        return begin + int(symbol["value"])

    def _rows(self, section: Any, row: np.dtype[Any]) -> Any:
        return np.frombuffer(self._code, row, int(section["size"]) // row.itemsize, int(section["offset"]))

    def _name(self, section: Any) -> str:
        return self._string(self._names, section)

    def _symbol_name(self, symbol: Any) -> str:
        return self._string(self._strings, symbol)

    def _string(self, strings: Any, one: Any) -> str:
        begin = int(strings["offset"]) + int(one["name"])
        return self._code[begin : self._code.index(b"\0", begin)].decode()
