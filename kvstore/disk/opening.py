"""What happens to a directory before a store uses it."""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress
from typing import Final

from kvstore.block import Namespace
from kvstore.disk.directory import Directory, tree_bytes
from kvstore.disk.environment import Unsound, lmdb_errors
from kvstore.disk.tables import Tables
from kvstore.disk.verification import is_short, problems, problems_found_here
from kvstore.errors import StoreFull

_log = logging.getLogger(__name__)

# LMDB's map bounds its file, which outgrows its records: freed runs of pages are seldom of the length that is wanted
# next. 1.09 to 1.14 of the capacity was measured under churn, 1.16 where a batch is 3 % of it (docs/adr/0004).
_PAYLOAD_SLACK: Final = 1.2
_META_SHARE: Final = 1 / 16
_EXTRA_BYTES, _EXTRA_SHARE = 8 << 20, 1 / 4
_LEAST_MAP_BYTES: Final = 1 << 20

_MOST_VERIFIED_BYTES: Final = 8 << 20
"""Of entries: some 30,000 of them, whose verification takes a third of a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What was found, and done about it."""

    clean: bool
    """Everything was on the disk when the directory was last used."""
    dropped: str | None = None
    """What was wrong with LMDB's own pages, if it was: everything was set aside then."""
    orphans: int = 0
    """Records and entries without their counterpart, left by a crash; deleted."""
    expired_blocks: int = 0
    """Blocks of other namespaces that were deleted because nobody had used them for too long."""
    trimmed_blocks: int = 0
    """Blocks of other namespaces that were deleted to leave this one its share."""


def open_tables(
    directory: Directory,
    opened: Callable[[], Tables],
    namespace: Namespace,
    capacity_bytes: int,
    now_ns: int,
    *,
    ttl_ns: int | None,
    kept: Callable[[Callable[[bytes], int | None]], Collection[bytes]],
) -> tuple[Tables, Opening]:
    """Open the environments of a directory, by `opened`, or new ones in their place if they are not sound.

    What was left in order and is large is believed, and takes no longer than what is small. Otherwise the trees are
    walked, everything is counted, and the keys of both are compared: some 15 microseconds a record, and from a cold disk
    one read of a page for each. `kept`: which entry keys of other namespaces must stay, given what says when each was used.
    """
    _tell_of_other_formats(directory)
    clean = directory.clean
    tables, orphans, dropped = _open_or_replace(directory, opened, now_ns)
    try:
        expired = trimmed = 0
        with suppress(StoreFull):  # then there is no room even to delete: what is there can be read
            held = kept(tables.used_ns)
            if ttl_ns is not None:
                expired = expire_others(tables, namespace.digest, now_ns - ttl_ns, held)
            trimmed = _trim_others(tables, namespace.digest, capacity_bytes // 2, held)
    except BaseException:
        tables.close()
        raise
    opening = Opening(
        clean=clean, dropped=dropped, orphans=orphans, expired_blocks=expired, trimmed_blocks=trimmed
    )
    return tables, opening


def fresh_tables(directory: Directory, opened: Callable[[], Tables], now_ns: int) -> Tables:
    """Set the environments aside, which may be open still, and have empty ones `opened` in their place."""
    with lmdb_errors("setting damaged environments aside"):
        aside = directory.set_aside(now_ns)
    _log.warning(
        "%s starts empty; what it held is in %s",
        directory.root,
        aside.name,
        extra={"path": directory.root, "set_aside": aside.name},
    )
    return opened()


def emptied_tables(directory: Directory, opened: Callable[[], Tables]) -> Tables:
    """Have new environments `opened` in place of these, of which nothing is wanted any more; they may be open still."""
    with lmdb_errors("deleting empty environments"):
        directory.discard()
    return opened()


def _tell_of_other_formats(directory: Directory) -> None:
    """One warning: nobody else would say why a new version of this program finds nothing, and where the space went."""
    with lmdb_errors("looking for other formats"):
        found = directory.other_formats()
    if found:
        path, names = directory.root.parent, ", ".join(other.name for other in found)
        _log.warning(
            "%s holds blocks of another format (%s), which are not used; to delete them: kvtide disk clear --old %s",
            path,
            names,
            path,
            extra={"path": path, "formats": [other.name for other in found]},
        )


def map_bytes(capacity_bytes: int) -> tuple[int, int]:
    """The most that the files of records and of entries may become where records may take `capacity_bytes`."""
    extra = max(_LEAST_MAP_BYTES, min(_EXTRA_BYTES, int(capacity_bytes * _EXTRA_SHARE)))
    return int(capacity_bytes * _PAYLOAD_SLACK) + extra, int(capacity_bytes * _META_SHARE) + extra


def capacity_within(file_bytes: int) -> int:
    """The capacity for which both files together never take more than `file_bytes`, from some 8 MiB on."""
    slope = _PAYLOAD_SLACK + _META_SHARE
    return max(0, int(file_bytes / (slope + 2 * _EXTRA_SHARE)), int((file_bytes - 2 * _EXTRA_BYTES) / slope))


def expire_others(tables: Tables, namespace_digest: bytes, until_ns: int, held: Collection[bytes]) -> int:
    """Delete blocks of all other namespaces that were last used at `until_ns` or before, save those that are held. How many.

    Their own model, which would see to it, may never be started again.
    """
    doomed: list[bytes] = []
    for digest in _others(tables, namespace_digest):
        for page in tables.pages(digest):
            doomed += compress(page.keys, (page.metas.used_ns <= until_ns).tolist())
    doomed = [key for key in doomed if key not in held]
    tables.delete(doomed)
    return len(doomed)


def _trim_others(tables: Tables, namespace_digest: bytes, most_bytes: int, held: Collection[bytes]) -> int:
    """Delete blocks of all other namespaces, oldest first, until those take at most `most_bytes`, save what is held.

    A model that is no longer used must not keep the one that is used from the disk for ever. Answers how many
    blocks were deleted.
    """
    digests = _others(tables, namespace_digest)
    others = sum(tables.usage[digest].stored_bytes for digest in digests)
    if others <= most_bytes:
        return 0
    pages = (page for digest in digests for page in tables.pages(digest))
    found = (
        (meta.used_ns, key, meta.stored_bytes)
        for page in pages
        for key, meta in zip(page.keys, page.metas, strict=True)
        if key not in held
    )
    doomed = []
    for _, key, stored_bytes in sorted(found):
        if others <= most_bytes:
            break
        doomed.append(key)
        others -= stored_bytes
    tables.delete(doomed)
    return len(doomed)


def _others(tables: Tables, namespace_digest: bytes) -> list[bytes]:
    """The digests of all other namespaces that have blocks."""
    return [digest for digest, used in tables.usage.items() if used.blocks and digest != namespace_digest]


def _open_or_replace(
    directory: Directory, opened: Callable[[], Tables], now_ns: int
) -> tuple[Tables, int, str | None]:
    """Counted tables, the number of orphans swept, and what was wrong with the tables that these replace."""
    in_order = directory.clean and directory.was_signed_off and not any(map(is_short, directory.environments))
    # to look at each record of many would take seconds
    believed = in_order and tree_bytes(directory.meta) > _MOST_VERIFIED_BYTES
    dropped = None if believed else _first_problem(directory, in_order=in_order)
    if dropped is None:
        try:
            return *_open_counted(opened(), believed=believed), None
        except Unsound as error:
            dropped = str(error)
    with lmdb_errors("setting damaged environments aside"):
        aside = directory.set_aside(now_ns)
    _log.warning(
        "%s is damaged and starts empty (%s): %s",
        directory.root,
        aside.name,
        dropped,
        extra={"path": directory.root, "set_aside": aside.name, "error": dropped},
    )
    return *_open_counted(opened(), believed=True), dropped


def _open_counted(tables: Tables, *, believed: bool) -> tuple[Tables, int]:
    try:
        if believed:
            tables.count()
            return tables, 0
        tables.recount()
        orphans = 0
        with suppress(StoreFull):  # the next opening finds them again
            orphans = tables.sweep()
    except BaseException:
        tables.close()
        raise
    return tables, orphans


def _first_problem(directory: Directory, *, in_order: bool) -> str | None:
    """What is wrong with the environments: LMDB should not be given what could end this process."""
    found = (problems_found_here if in_order else problems)(directory.environments)
    return f"{found[0]} ({len(found)} in all)" if found else None
