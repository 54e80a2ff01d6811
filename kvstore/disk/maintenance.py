"""What can be done to the directory of a disk store while no store has it open.

All of these take the directory's lock, so that nobody opens it meanwhile, and raise StoreLocked if somebody has
it, Damaged if the trees are not sound. None needs to know the namespaces or the layouts of what rests there.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb

from kvstore.baseline import Baseline
from kvstore.disk.baselines import verified
from kvstore.disk.directory import FORMAT, Directory, sync_path, tree_bytes
from kvstore.disk.envelope import damage_at_rest
from kvstore.disk.environment import keys, lmdb_errors, unpaired
from kvstore.disk.namespaces import FactFiles
from kvstore.disk.quarantine import Quarantine
from kvstore.disk.retained import counted
from kvstore.disk.tables import Tables
from kvstore.disk.verification import problems
from kvstore.errors import FormatError
from kvstore.reasons import MissReason

Progress = Callable[[int, int], object]
"""Called with how much is done, and how much there is."""

_MAP_EXTRA_BYTES: Final = 64 << 20
_RECORDS_AT_ONCE: Final = 64


class Damaged(FormatError):
    """LMDB's trees are not sound: nothing else can be said or done before the next opening replaces them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What rests in a directory."""

    clean: bool
    encrypted: bool
    namespaces: dict[str, dict[str, Any]]
    """By namespace digest, hexadecimal: `blocks`, `stored_bytes`, and `facts`, which are None where they are not known."""
    names: int
    """Named caches, of all namespaces."""
    file_bytes: int
    quarantined: list[dict[str, Any]]
    set_aside: list[str]
    """Environments that failed as a whole."""
    other_formats: list[str]
    """Directories of other versions of the format, beside this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a verification found."""

    records: int = 0
    trees: list[str] = field(default_factory=list)
    """What is wrong with LMDB's own pages. If anything is, the records were not looked at."""
    damaged: dict[str, int] = field(default_factory=dict)
    """Records that fail a check, by reason."""
    baselines: int = 0
    """Baselines that are damaged: the next opening deletes them, and records that name them are misses."""
    unread_baselines: int = 0
    """Baselines that could not be read. If there are any, records that name an unknown one do not count as damaged."""
    retained: int = 0
    """Rows of what users asked to keep that are damaged, or of a version that is not known: they are not heard."""
    unpaired: int = 0
    """Records without an entry and entries without a record; the next opening deletes them."""

    @property
    def sound(self) -> bool:
        return not (self.trees or self.damaged or self.baselines or self.unread_baselines or self.retained)


def inspect(path: Path) -> Contents:
    """What is there, without touching a record. Raises FormatError if this is no store."""
    with _held(path) as directory:
        with _tables(directory) as tables:
            facts = FactFiles(directory.namespaces)
            namespaces = {
                digest.hex(): {**asdict(used), "facts": facts.facts(digest)}
                for digest, used in tables.counted()[0].items()
            }
        num_names, _ = counted(directory.retained)
        return Contents(
            names=num_names,
            clean=directory.clean,
            encrypted=directory.encrypted_mark.exists(),
            namespaces=namespaces,
            file_bytes=directory.file_bytes(),
            quarantined=[
                {
                    "key": one.key.hex(),
                    "namespace": one.namespace_digest.hex(),
                    "reason": one.reason.value,
                    "when_ns": one.when_ns,
                    "bytes": one.num_bytes,
                    "path": str(one.path),
                }
                for one in Quarantine(directory.quarantine).listed()
            ],
            set_aside=[str(aside) for aside in directory.set_aside_paths()],
            other_formats=[str(other) for other in directory.other_formats()],
        )


def verify(path: Path, progress: Progress) -> Verdict:
    """Check the trees, then every record by all checksums it has. Changes nothing."""
    with _held(path) as directory:
        trees = problems(_environments(directory))
        if trees:
            return Verdict(trees=trees)
        with _tables(directory) as tables, lmdb_errors("reading records"):
            baselines, damaged_baselines, unread_baselines = verified(
                directory.baselines, sealed=directory.encrypted_mark.exists()
            )
            total = int(tables.records.stat()["entries"])
            damaged: Counter[str] = Counter()
            done = 0
            for some in keys(tables.records, _RECORDS_AT_ONCE):
                reasons = tables.examined(some, partial(_damage, some, baselines))
                damaged.update(reason.value for reason in reasons if reason is not None)
                done += len(some)
                progress(done, total)
            num_unpaired = sum(map(len, unpaired(tables.records, tables.entries)))
        if unread_baselines:
            del damaged[MissReason.MISSING_BASELINE.value]
        return Verdict(
            records=total,
            damaged=dict(damaged),
            baselines=damaged_baselines,
            unread_baselines=unread_baselines,
            retained=counted(directory.retained)[1],
            unpaired=num_unpaired,
        )


def compact(path: Path, progress: Progress) -> tuple[int, int]:
    """Write all environments anew without their free pages. Answers the bytes of the files before and after.

    Each is copied beside the old one, synced, and renamed over it: a crash leaves one or the other. Raises
    StoreFull if the copy has no room.
    """
    with _held(path) as directory:
        _check_trees(directory)
        before = directory.file_bytes()
        there = [each for each in _environments(directory) if (each / "data.mdb").exists()]
        for done, environment in enumerate(there):
            progress(done, len(there))
            _compact(environment)
        progress(len(there), len(there))
        return before, directory.file_bytes()


def clear(path: Path, *, old: bool) -> int:
    """Delete all blocks; or only what is of no use: other formats, what was set aside. Answers the bytes freed."""
    with _held(path) as directory:
        doomed = [directory.quarantine, *directory.set_aside_paths()]
        if old:
            doomed += directory.other_formats()
        else:
            directory.mark_unclean()
            doomed += [
                directory.meta,
                directory.payload,
                directory.keys,
                directory.namespaces,
                directory.baselines,
                directory.retained,
            ]
        freed = sum(tree_bytes(each) for each in doomed)
        for each in doomed:
            if each.exists():
                with lmdb_errors(f"deleting {each}"):
                    shutil.rmtree(each)
        if not old:  # last: who is given the directory next may use another key, or none
            directory.encrypted_mark.unlink(missing_ok=True)
        return freed


@contextmanager
def _held(path: Path) -> Iterator[Directory]:
    """The directory, for us alone. Raises FormatError if there is no store of this format."""
    if not (path / FORMAT / "lock").exists():
        raise FormatError(
            f"{path} is no disk tier of kvtide's: there is no {FORMAT}/lock in it; name what was given as disk_path"
        )
    directory = Directory(path)
    try:
        yield directory
    finally:
        directory.leave_as_found()
        directory.close()


def _environments(directory: Directory) -> tuple[Path, ...]:
    return *directory.environments, directory.retained


@contextmanager
def _tables(directory: Directory) -> Iterator[Tables]:
    _check_trees(directory)
    tables = Tables(directory, (_map_bytes(directory.payload), _map_bytes(directory.meta)))
    try:
        yield tables
    finally:
        tables.close()


def _damage(
    entry_keys: list[bytes], baselines: Mapping[bytes, Baseline], position: int, rests: Any
) -> MissReason | None:
    return damage_at_rest(rests, entry_keys[position], baselines)


def _check_trees(directory: Directory) -> None:
    """Raise Damaged if the trees are not sound."""
    found = problems(_environments(directory))
    if found:
        raise Damaged(f"{directory.root} is damaged: {found[0]} ({len(found)} in all)")


def _compact(environment: Path) -> None:
    fresh = environment.with_name(environment.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    try:
        with lmdb_errors(f"compacting {environment}"):
            with lmdb.open(str(environment), map_size=_map_bytes(environment), mode=0o600) as source:
                source.copy(str(fresh), compact=True)
            data = fresh / "data.mdb"
            data.chmod(0o600)
            sync_path(data)
            data.replace(environment / "data.mdb")
            sync_path(environment)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _map_bytes(environment: Path) -> int:
    data = environment / "data.mdb"
    return (data.stat().st_size if data.exists() else 0) + _MAP_EXTRA_BYTES
