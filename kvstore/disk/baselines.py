"""The baselines that records in a directory are encoded with: a file each, written once.

    PATH/v1/baselines/<namespace digest>-<digest of the file>    hexadecimal

The name proves the content. Where blocks are encrypted, a file is sealed as a record that is everybody's. A file is on the
disk before the first record that names its baseline, and stays as long as there are blocks of its namespace.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from kvstore.baseline import DIGEST_BYTES, Baseline
from kvstore.block import KEY_BYTES
from kvstore.disk.directory import sync_path, write_new
from kvstore.disk.form import Form
from kvstore.errors import FormatError
from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER

_log = logging.getLogger(__name__)

MAX_BYTES: Final = 16 << 20
"""Of a file. A model of 100 layers with 64 heads of 256 takes 6 MiB."""
_A_NAME: Final = re.compile(f"([0-9a-f]{{{2 * KEY_BYTES}}})-([0-9a-f]{{{2 * DIGEST_BYTES}}})")


class BaselineFiles:
    """The baselines of one namespace. Only the writer's thread calls it, and one that opens or closes a store."""

    def __init__(self, folder: Path, namespace_digest: bytes, form: Form) -> None:
        self._folder, self._namespace_digest, self._form = folder, namespace_digest, form

    def found(self) -> Iterator[Baseline]:
        """Those that are there and sound. Reads all files of the namespace, and deletes those that say nothing."""
        for path in _paths(self._folder):
            if path.name.startswith(self._namespace_digest.hex()):
                try:
                    yield _read(path, self._form.opened)
                except FormatError as error:
                    facts = {"path": path, "error": error}
                    _log.warning("%(error)s: what was encoded with it is computed again", facts, extra=facts)
                    with contextlib.suppress(OSError):
                        path.unlink()
                except OSError:
                    continue

    def keep(self, baseline: Baseline) -> bool:
        """Have it on the disk. Answers whether it is: not where it cannot be written, as on a full disk."""
        content = self._form.record(baseline.content, NO_OWNER)
        name = f"{self._namespace_digest.hex()}-{_digest(content).hex()}"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            sync_path(self._folder.parent)
            write_new(self._folder / name, content)
        except OSError:
            return False
        return True

    def forget_all_but(self, digests: Collection[bytes]) -> None:
        """Delete the files of all other namespaces, and what is left of writing one."""
        kept = {digest.hex() for digest in digests}
        with contextlib.suppress(OSError):  # the next opening tries again
            for path in self._folder.iterdir():
                parsed = _A_NAME.fullmatch(path.name)
                if parsed is None or parsed[1] not in kept:
                    path.unlink()


def verified(folder: Path, *, sealed: bool) -> tuple[dict[bytes, Baseline], int]:
    """All baselines in a directory by digest, and how many files are damaged. None can be had where they are sealed."""
    found: dict[bytes, Baseline] = {}
    damaged = 0
    for path in _paths(folder):
        try:
            if sealed:
                _content(path)
            else:
                baseline = _read(path, lambda rests: rests)
                found[baseline.digest] = baseline
        except (OSError, FormatError):
            damaged += 1
    return found, damaged


def _paths(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if _A_NAME.fullmatch(path.name))
    except OSError:
        return []


def _read(path: Path, opened: Callable[[Any], Any | MissReason]) -> Baseline:
    content = opened(_content(path))
    if content is MissReason.READ_FAILED:
        raise OSError(f"the key of {path} cannot be read")
    if isinstance(content, MissReason):
        raise FormatError(f"the baseline {path} cannot be opened: {content.value}")
    return Baseline.parse(bytes(content))


def _content(path: Path) -> bytes:
    """What a file holds, if that is what its name says."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES)
    if not path.name.endswith(_digest(content).hex()):
        raise FormatError(f"the baseline {path} is damaged")
    return content


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=DIGEST_BYTES).digest()
