"""What goes wrong: the same for every system, at the level of the files that it keeps."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Random = random.Random


@dataclass(frozen=True)
class Place:
    """Where the payload of a block lies: the bytes [start, end) of a file."""

    path: Path
    start: int
    end: int


Damage = Callable[[Path, Sequence[Place], Random], None]
"""(the system's directory, the places of its blocks, a seeded source of chance)."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and when.

    In use: with the blocks just written, and read back through the same object. At rest: between an orderly end and
    a new process. Killed: SIGKILL once every write was acknowledged, then a new process.
    """

    name: str
    when: Literal["in use", "at rest", "killed"]
    damage: Damage


def _nothing(_directory: Path, _places: Sequence[Place], _rng: Random) -> None:
    pass


def _flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as file:
        [value] = os.pread(file.fileno(), 1, byte)
        os.pwrite(file.fileno(), bytes([value ^ 1 << bit]), byte)
        os.fsync(file.fileno())


def flip_payload(_directory: Path, places: Sequence[Place], rng: Random) -> None:
    """One bit of one block's payload."""
    place = rng.choice(places)
    _flip(place.path, rng.randrange(place.start, place.end), rng.randrange(8))


def flip_anywhere(directory: Path, _places: Sequence[Place], rng: Random) -> None:
    """One bit of all the bytes in all the files: also of an index, a tree, a configuration."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    [path] = rng.choices(files, sizes)
    _flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))


def cut_to_half(_directory: Path, places: Sequence[Place], rng: Random) -> None:
    """The file that holds one block's payload."""
    path = rng.choice(places).path
    _cut(path, path.stat().st_size // 2)


def cut_the_end(_directory: Path, places: Sequence[Place], rng: Random) -> None:
    """The same, but only so much that the last payload in it lacks a few bytes; what follows it is no block's."""
    path = rng.choice(places).path
    _cut(path, max(place.end for place in places if place.path == path) - rng.randint(1, 64))


def _cut(path: Path, kept_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(kept_bytes)
        os.fsync(file.fileno())


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("nothing", "in use", _nothing),
        Fault("payload: bit flipped, in use", "in use", flip_payload),
        Fault("payload: bit flipped, at rest", "at rest", flip_payload),
        Fault("any file: bit flipped, in use", "in use", flip_anywhere),
        Fault("any file: bit flipped, at rest", "at rest", flip_anywhere),
        Fault("file: cut to half, in use", "in use", cut_to_half),
        Fault("file: cut to half, at rest", "at rest", cut_to_half),
        Fault("file: last 1 to 64 bytes of payload cut off, in use", "in use", cut_the_end),
        Fault("file: last 1 to 64 bytes of payload cut off, at rest", "at rest", cut_the_end),
        Fault("restart: closed in order", "at rest", _nothing),
        Fault("restart: killed", "killed", _nothing),
    )
}
