"""Code that is laid out here does what it does when LLVM loads it, and what cannot be laid out is left to that."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvstore import linking, machine_code
from kvstore.errors import StoreFailed
from kvstore.linking import kept_code
from kvstore.machine_code import UNIT, Image, image_bytes, loaded_code, object_bytes
from tests.kvstore.halved import HALVE


@pytest.fixture(scope="module")
def emitted() -> bytes:
    """The object file of `halve`. numba is imported by a process of its own, which changes it."""
    program = (
        "import sys; from kvstore.code import Function; from kvstore.compiling import object_code;"
        f"sys.stdout.buffer.write(object_code({HALVE}))"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout


def halving_by(kept: bytes) -> list[int]:
    [halve] = loaded_code([kept], ["halve"], ["tests"])
    numbers = np.arange(-4, 5)
    with pytest.raises(TypeError, match="halve is not compiled for"):
        halve(numbers.astype(np.int32), 2)
    with pytest.raises(MemoryError, match="halve"):
        halve(numbers, 0)
    return [halve(numbers, 3), *numbers.tolist()]


def test_it_does_what_it_does_when_llvm_loads_it(emitted):
    kept = kept_code(emitted)
    assert machine_code._image(object_bytes(emitted)) is None
    assert halving_by(kept) == halving_by(object_bytes(emitted)) == [9, -2, -1, -1, -1, 0, 0, 0, 1, 1]


AFTER_THE_MODULE = """
import gc, sys
import numpy as np
from kvstore import machine_code

[halve] = machine_code.loaded_code([bytes.fromhex(sys.argv[1])], ["halve"], ["tests"])
vars(machine_code).clear()
gc.collect()
numbers = np.arange(8)
assert halve(numbers, 2) == 8 and numbers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
"""


def test_code_is_there_when_the_module_is_gone_that_has_loaded_it(emitted):
    """As at the end of the interpreter, where a thread may be in such code, and come back to it."""
    given = kept_code(emitted).hex()
    done = subprocess.run([sys.executable, "-c", AFTER_THE_MODULE, given], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, b"\xcf\xfa\xed\xfe"), (4, b"\x01"), (16, b"\x03"), (18, b"\xb7")],
    ids=["another format", "32 bits", "a library", "another processor"],
)
def test_what_is_not_known_here_is_left_to_llvm(emitted, offset, value):
    other = bytearray(emitted)
    other[offset : offset + len(value)] = value
    assert kept_code(bytes(other)) == object_bytes(bytes(other))


@pytest.mark.parametrize("change", ["a symbol", "a kind of place", "a section that is written to"])
def test_what_asks_for_more_than_whole_addresses_is_left_to_llvm(emitted, change):
    other, sections = bytearray(emitted), linking._Object(emitted)._sections
    if change == "a symbol":
        other = other.replace(b"PyErr_SetString\0", b"PyErr_SetStrong\0")
    elif change == "a kind of place":
        moves = sections[sections["type"] == linking._MOVES][0]
        other[int(moves["offset"]) + 8] = 10  # R_X86_64_32
    else:
        (begin,) = struct.unpack_from("<Q", emitted, 0x28)
        [code, *_] = [number for number, one in enumerate(sections) if one["flags"] & 0x4 and one["size"]]
        other[begin + 64 * code + 8] |= linking._WRITTEN
    assert bytes(other) != emitted
    assert kept_code(bytes(other)) == object_bytes(bytes(other))


def test_images_lie_side_by_side_and_each_gets_its_addresses(monkeypatch):
    """Of an odd size, at odd places, of itself and of others; no more to be written, and to be run."""
    images: list[Image] = []
    kept: list[np.ndarray] = []
    monkeypatch.setattr(machine_code, "_keep", kept.append)
    for number in range(3):
        content = bytes([number] * (UNIT + 13 * number + 8))
        places = np.array([(3, 0, 5 + number), (16 + number, 1 + number, 0)], np.int64)
        images.append(Image(number, places, content))
    known = machine_code._addresses()
    begins = [
        address - image.entry for address, image in zip(machine_code._placed(images), images, strict=True)
    ]
    [memory] = kept
    assert [begin - begins[0] for begin in begins] == [0, 2 * UNIT, 4 * UNIT]
    for number, (image, begin) in enumerate(zip(images, begins, strict=True)):
        expected = bytearray(image.content)
        expected[3:11] = struct.pack("<Q", begin + 5 + number)
        expected[16 + number : 24 + number] = struct.pack("<Q", known[number])
        at = begin - begins[0]
        assert memory[at : at + len(expected)].tobytes() == bytes(expected)
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [(*(int(end, 16) for end in line.split()[0].split("-")), line.split()[1]) for line in lines]
    assert [rights for begin, end, rights in spans if begin <= begins[0] < end] == ["r-xp"]
    assert machine_code._placed([]) == []


def test_where_the_system_lets_nothing_be_run_it_is_said_and_nothing_is_kept(monkeypatch):
    image = Image(0, np.array([(0, 0, 0)], np.int64), bytes(8))
    monkeypatch.setattr(machine_code, "_keep", pytest.fail)
    monkeypatch.setattr(machine_code._libc, "mprotect", lambda *_: -1)
    with pytest.raises(StoreFailed, match="no memory can be had that code may be run in"):
        machine_code._placed([image])


def test_an_image_is_kept_as_it_is():
    image = Image(64, np.arange(9).reshape(3, 3), b"content")
    kept = machine_code._image(image_bytes(image))
    assert kept is not None
    assert (kept.entry, kept.places.tolist(), kept.content) == (64, image.places.tolist(), b"content")
