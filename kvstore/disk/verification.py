"""Whether environments that are not open are sound, found out without risking this process.

LMDB maps its file and follows what it reads there: a damaged tree, or a file that is shorter than its tree, can
end the process by a signal. py-lmdb's verifier is Python that reads the file instead. After an orderly end it runs
here, over what is small; after any other in a process of its own, so that neither a bug of it nor the time it takes
is the engine's.
"""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lmdb.verify import verify

_MAGIC: Final = 0xBEEFC0DE
TIMEOUT_S: Final = 120.0  # two seconds a million records were measured; the rest is for cold disks


def problems(
    environments: Sequence[Path], *, command: Sequence[str] | None = None, timeout_s: float = TIMEOUT_S
) -> list[str]:
    """What is structurally wrong with these environments; a directory without one is fine. Blocks.

    `command` takes the directories as arguments and prints a line for each problem. If it does not end well, or
    not within `timeout_s`, that is a problem too: what could not be verified is not to be opened.
    """
    paths = [str(path) for path in environments if (path / "data.mdb").exists()]
    if not paths:
        return []
    try:
        done = subprocess.run(
            [*(command or (sys.executable, "-P", __file__)), *paths],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return [f"not verified within {timeout_s:g} seconds"]
    except OSError as error:
        return [f"cannot be verified: {error}"]
    found = done.stdout.splitlines()
    if done.returncode < 0:
        found.append(f"the verifier was ended by {_signal_name(-done.returncode)}")
    elif done.returncode > 0:
        found.append(f"the verifier ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return found


def problems_found_here(environments: Sequence[Path]) -> list[str]:
    """As `problems`, in this process and for as long as it takes: some 12 microseconds a record."""
    found: list[str] = []
    for path in environments:
        if (path / "data.mdb").exists():
            try:
                found += [f"{path}: {problem}" for problem in verify(str(path))]  # type: ignore[no-untyped-call]
            except Exception as error:  # noqa: BLE001 - what it cannot make sense of is not to be opened
                found.append(f"{path}: {error!r}")
    return found


def is_short(environment: Path) -> bool:
    """Whether the data file ends before the last page that LMDB has given out, or cannot be read as its file.

    That is no damage in itself, as free pages at the end may never have been written; but reading beyond the end
    of a mapped file ends the process, so it is reason to verify.
    """
    data = environment / "data.mdb"
    if not data.exists():
        return False
    try:
        with data.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = Meta(file.read(Meta.num_bytes))
            file.seek(first.page_bytes)
            second = Meta(file.read(Meta.num_bytes))
    except (OSError, ValueError):
        return True
    return size < (max(first.last_page, second.last_page) + 1) * first.page_bytes


class Meta:
    """What one of the two meta pages of LMDB's data format 1 says, on 64-bit machines. Raises ValueError for what is none."""

    number: int
    """The page's own."""
    kind: int
    version: int
    page_bytes: int
    flags: int
    """Of the main database, as `depth` and `root`."""
    depth: int
    root: int
    last_page: int
    commit: int
    """Its number: a transaction has that of the last one before it."""
    # with the magic after the kind
    _form: Final = struct.Struct("<Q2xH4xII16xI44x4xHH32xQQQ")
    num_bytes: Final = _form.size

    def __init__(self, page: bytes) -> None:
        if len(page) < self.num_bytes:
            raise ValueError("too short for a page of LMDB's")
        fields = self._form.unpack_from(page)
        self.number, self.kind, magic, self.version, self.page_bytes = fields[:5]
        self.flags, self.depth, self.root, self.last_page, self.commit = fields[5:]
        if magic != _MAGIC:
            raise ValueError("no page of LMDB's")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":  # the process of its own: it imports none of this package
    sys.stdout.writelines(
        f"{problem}\n" for problem in problems_found_here([Path(path) for path in sys.argv[1:]])
    )
