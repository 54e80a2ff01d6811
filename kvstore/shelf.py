"""Files that are made once on a machine and found again by later processes, if they are what they say, and whole."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

_log = logging.getLogger(__name__)

_MAGIC: Final = b"kvtide code 3\n"
_MOST_KEPT: Final = 16
"""Of one thing in one place, each made of other sources or for another machine: all functions together take 0.7 MB."""
_LATELY_S: Final = 86_400.0
"""What was used so lately is kept besides: two versions that start in turn, however many others there are, find their own."""
_NOTED_S: Final = 3_600.0
"""A use is noted if none was for so long: most starts only read."""


class Shelf:
    """Where one thing is kept, under a name that says what and of what it is. What is on it may be code that is run."""

    def __init__(self, source: Path, whose: str, made_of: str, folders: Sequence[Path] | None = None) -> None:
        """Of a module's `source`. whose: the thing, alone in having this name.   made_of: a digest of all that it depends on.   folders: in place
        of the usual ones; the first that can be written gets what is new.
        """
        self._folders = list(usual_folders(source)) if folders is None else folders
        self._whose = f"{source.stem}.{whose}-"
        self._name = f"{self._whose}{made_of[:16]}.code"
        found = source.stat()
        self._mode, self._owner = found.st_mode & 0o644, found.st_uid  # for whoever may read the source
        self._key = f"{self._whose}{made_of}".encode()

    def find(self) -> bytes | None:
        """What was kept, if it is there and whole."""
        for folder in self._folders:
            with suppress(OSError):
                kept = _read(f"{folder}/{self._name}", self._owner)
                content = kept[len(_MAGIC) + 32 :]
                if kept == self._sealed(content):
                    return content
        return None

    @property
    def is_there(self) -> bool:
        """Whether something was kept, which may not be whole."""
        return any(os.path.exists(f"{folder}/{self._name}") for folder in self._folders)  # noqa: PTH110 - as in _read

    def keep(self, content: bytes) -> str | None:
        """For later processes; what nobody has used for long makes way. Answers why it cannot be kept, where that is so."""
        errors = []
        for folder in self._folders:
            try:
                self._write(folder, self._sealed(content))
            except OSError as error:
                errors.append(str(error))
                continue
            self._make_way(folder)
            return None
        return "; ".join(errors)

    def _make_way(self, folder: Path) -> None:
        """Of this thing, what ended processes have left half-written included, delete what is neither among the last
        _MOST_KEPT that were used nor was used lately. A process that has read a file needs it no more.
        """
        used_s = {}
        with suppress(OSError):  # what may be written need not be listed
            for path in folder.glob(f"{self._whose}*"):
                with suppress(OSError):  # another deletes as well
                    used_s[path] = path.stat().st_mtime
        for path in sorted(used_s, key=used_s.__getitem__, reverse=True)[_MOST_KEPT:]:
            if used_s[path] < time.time() - _LATELY_S:
                with suppress(OSError):
                    path.unlink()

    def _write(self, folder: Path, sealed: bytes) -> None:
        """Whoever looks meanwhile finds all of it, or nothing; what a loss of power leaves fails its checksum."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=self._name, delete=False) as file:
            path = Path(file.name)
            try:
                os.fchmod(file.fileno(), self._mode)
                file.write(sealed)
                file.flush()
                path.replace(folder / self._name)
            except BaseException:
                path.unlink()
                raise

    def _sealed(self, content: bytes) -> bytes:
        return _MAGIC + hashlib.sha256(self._key + content).digest() + content


def _read(path: str, owner: int) -> bytes:
    """A file that nobody has written but this user, whom it obeys anyway, or the owner of the source. That it is used is noted in its
    time of writing: that of reading many file systems do not keep. Of a file that is another's, or lies where nothing can be written,
    its owner disposes.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a path object takes as long as all of this
        found = os.fstat(file.fileno())
        if found.st_uid not in {0, os.geteuid(), owner} or found.st_mode & 0o022:
            raise PermissionError(f"others may have written {path}")
        kept = file.readall()
        if abs(time.time() - found.st_mtime) > _NOTED_S:
            with suppress(OSError):
                os.utime(path)
    return kept


def usual_folders(source: Path) -> Iterator[Path]:
    """Where what is made of a module may be kept, the best first."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(named)
    yield Path(cache_from_source(str(source))).parent
    with suppress(RuntimeError):  # nobody's home
        yield Path.home() / ".cache" / "kvtide" / "code"


def digest_of(*parts: bytes) -> str:
    """Of some bytes after each other, which no others have together."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
