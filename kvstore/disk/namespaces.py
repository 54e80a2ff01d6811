"""Whose blocks rest in a directory: the facts of each namespace, and what of a prompt the others have.

    PATH/v1/namespaces/<namespace digest>.json    the facts, as a JSON object of strings

A digest says that two models differ; only the facts say in what. They are for people and never for finding blocks, so a
file that is missing or damaged means that they are not known, and costs nothing else.
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from kvstore.block import Namespace, chain_key, root_key_of
from kvstore.disk.directory import delete_all_but, sync_path, write_new
from kvstore.disk.environment import lmdb_errors
from kvstore.disk.form import Form
from kvstore.disk.tables import Tables, Usage
from kvstore.reports import NamespaceInfo
from kvstore.steering import Elsewhere

MAX_BYTES: Final = 64 << 10
"""Of a file. The facts of an engine take less than one of these 64 KiB."""
_SUFFIX: Final = ".json"

MAX_OTHERS: Final = 32
MAX_BLOCKS: Final = 4096
_KEYS_PER_READ: Final = 256


class FactFiles:
    """The facts of the namespaces in a directory. Any thread may ask; only the writer's thread changes anything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def facts(self, digest: bytes) -> dict[str, str] | None:
        """What is in a namespace; None if that is not known. Reads a file."""
        try:
            with self._path(digest).open("rb") as file:
                found = json.loads(file.read(MAX_BYTES))
            # a file that says something else than what was written does not have the digest that is its name
            return found if Namespace.of(found).digest == digest else None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None

    def learn(self, namespace: Namespace) -> None:
        """Have the facts on the disk. Where they cannot be written, as on a full disk, they stay unknown."""
        if self.facts(namespace.digest) is not None:
            return
        content = json.dumps(dict(namespace.fields), indent=1).encode()
        if len(content) > MAX_BYTES:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            sync_path(self._folder.parent)
            write_new(self._path(namespace.digest), content)

    def forget_all_but(self, digests: Collection[bytes]) -> None:
        """Delete the files of all other namespaces, and what is left of writing one."""
        kept = {self._path(digest).name for digest in digests}
        delete_all_but(self._folder, kept.__contains__)

    def _path(self, digest: bytes) -> Path:
        return self._folder / (digest.hex() + _SUFFIX)


def infos(usage: Mapping[bytes, Usage], files: FactFiles, own: Namespace) -> list[NamespaceInfo]:
    """See KnowsOthers.namespaces."""
    own_use = usage.get(own.digest, Usage())
    others = [(digest, used) for digest, used in usage.items() if used.blocks and digest != own.digest]
    others.sort(key=lambda other: other[1].stored_bytes, reverse=True)
    return [
        _info(own.digest, own_use, dict(own.fields), own=True),
        *(_info(digest, used, files.facts(digest), own=False) for digest, used in others),
    ]


def _info(digest: bytes, used: Usage, facts: dict[str, str] | None, *, own: bool) -> NamespaceInfo:
    return NamespaceInfo(
        digest=digest.hex(), own=own, facts=facts, blocks=used.blocks, stored_bytes=used.stored_bytes
    )


def found_elsewhere(
    tables: Tables, form: Form, files: FactFiles, own: Namespace, tokens: Sequence[bytes]
) -> list[Elsewhere]:
    """See KnowsOthers.others_with. Looks at MAX_BLOCKS blocks, and at the MAX_OTHERS namespaces that have most of all blocks.

    Reads entries and no record, in transactions of a millisecond or so.
    """
    usage = dict(tables.usage)  # the writer's thread may add to it
    others = {digest: used.blocks for digest, used in usage.items() if digest != own.digest}
    largest = sorted(others, key=lambda digest: others[digest], reverse=True)[:MAX_OTHERS]
    counts = {digest: _num_leading(tables, form, digest, tokens[:MAX_BLOCKS]) for digest in largest}
    found = [Elsewhere(digest.hex(), files.facts(digest), count) for digest, count in counts.items() if count]
    return sorted(found, key=lambda one: one.blocks, reverse=True)


def _num_leading(tables: Tables, form: Form, digest: bytes, tokens: Sequence[bytes]) -> int:
    names, count = _names(form, digest, tokens), 0
    while some := [name for _, name in zip(range(_KEYS_PER_READ), names, strict=False)]:
        with lmdb_errors("reading entries"), tables.entries.begin() as txn:
            for name in some:
                if txn.get(name) is None:
                    return count
                count += 1
    return count


def _names(form: Form, digest: bytes, tokens: Sequence[bytes]) -> Iterator[bytes]:
    """What the blocks of a prompt are called in a namespace."""
    key = root_key_of(digest)
    for block in tokens:
        key = chain_key(key, block)
        yield digest + form.name(key)
