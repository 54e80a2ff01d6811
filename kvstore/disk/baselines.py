"""The baselines that records in a directory are encoded with: a file each, written once.

    PATH/v1/baselines/<namespace digest>-<digest of the file>    hexadecimal

The name proves the content. Where blocks are encrypted, a file is sealed as a record that is everybody's. A file is on the
disk before the first record that names its baseline, and stays as long as there are blocks of its namespace.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Collection
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeVar

from kvstore.baseline import DIGEST_BYTES, Baseline
from kvstore.block import KEY_BYTES
from kvstore.disk.directory import delete_all_but, sync_path, write_new
from kvstore.disk.form import Form
from kvstore.errors import FormatError
from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER

T = TypeVar("T")
_log = logging.getLogger(__name__)

MAX_BYTES: Final = 16 << 20
"""Of a file. A model of 100 layers with 64 heads of 256 takes 6 MiB."""
_A_NAME: Final = re.compile(f"([0-9a-f]{{{2 * KEY_BYTES}}})-([0-9a-f]{{{2 * DIGEST_BYTES}}})")


class BaselineFiles:
    """The baselines of one namespace. Only the writer's thread calls it, and one that opens or closes a store."""

    def __init__(self, folder: Path, namespace_digest: bytes, form: Form) -> None:
        self._folder, self._namespace_digest, self._form = folder, namespace_digest, form

    def found(self) -> tuple[list[Baseline], list[OSError]]:
        """Those that are there and sound, and why some that may be there could not be read.

        Reads all files of the namespace, and deletes those that say nothing.
        """
        own = self._namespace_digest.hex()
        found, unread, damaged = _found(self._folder, lambda path: _read(path, self._form.opened), own)
        for path, error in damaged:
            facts = {"path": path, "error": error}
            _log.warning("%(error)s: what was encoded with it is computed again", facts, extra=facts)
            with contextlib.suppress(OSError):
                path.unlink()
        return found, unread

    def keep(self, baseline: Baseline) -> bool:
        """Have it on the disk. Answers whether it is: not where it cannot be written, as on a full disk."""
        content = bytes(self._form.record(baseline.content, NO_OWNER))
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

        def is_kept(name: str) -> bool:
            parsed = _A_NAME.fullmatch(name)
            return parsed is not None and parsed[1] in kept

        delete_all_but(self._folder, is_kept)


def verified(folder: Path, *, sealed: bool) -> tuple[dict[bytes, Baseline], int, int]:
    """All baselines in a directory by digest, and how many files are damaged, and how many cannot be read.

    None can be had where they are sealed.
    """
    if sealed:
        _, unread, damaged = _found(folder, _content)
        return {}, len(damaged), len(unread)
    found, unread, damaged = _found(folder, lambda path: _read(path, lambda rests: rests))
    return {baseline.digest: baseline for baseline in found}, len(damaged), len(unread)


def _found(
    folder: Path, read: Callable[[Path], T], begins: str = ""
) -> tuple[list[T], list[OSError], list[tuple[Path, FormatError]]]:
    """What is read of the files whose names begin so; why some could not be read, if only for now; and which are damaged."""
    found: list[T] = []
    unread: list[OSError] = []
    damaged: list[tuple[Path, FormatError]] = []
    try:
        paths = sorted(path for path in folder.iterdir() if _A_NAME.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        paths = []
    except OSError as error:
        return [], [error], []
    for path in paths:
        if path.name.startswith(begins):
            try:
                found.append(read(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                unread.append(error)
            except FormatError as error:
                damaged.append((path, error))
    return found, unread, damaged


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
