"""The directory of a disk store: who has it open, and whether it was left in order.

    PATH/v1/lock       held by flock(2) while a store is open; says by which process, until that ends in order
    PATH/v1/clean      there if everything in the environments had reached the disk and nothing was written since;
                       says how much that is
    PATH/v1/payload/   LMDB: the records
    PATH/v1/meta/      LMDB: what a scan tells of each record
    PATH/v1/quarantine/  records that failed a check
    PATH/v1/namespaces/  which models the blocks are of
    PATH/v1/baselines/   what records are encoded with
    PATH/v1/costs/       not the store's: what loading and computing took (tiering.kept_costs)
    PATH/v1/damaged-*/   environments that failed as a whole, the last ones only
    PATH/v1/retained/    LMDB: what users asked to keep, once they have
    PATH/v1/encrypted    there if the records are encrypted
    PATH/v1/keys/        the keys that they are encrypted with, themselves encrypted

See docs/block-format.md.
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvstore.disk.file_system import NETWORK, file_system
from kvstore.errors import StoreFailed, StoreLocked

ASIDE = "damaged-"
"""How the names of what was set aside begin."""
_ANY_FORMAT = re.compile(r"v\d+")
FORMAT = "v1"
"""A program that lays out the directory differently uses another name, and leaves this one alone."""


class Directory:
    """Holds the directory for this store alone, from construction to `close`. One thread at a time.

    Raises StoreLocked if it is held already, in this process too; StoreFailed if it cannot be made or
    written, or is on a network file system.
    """

    was_signed_off: bool
    """Whether whoever had it before ended in order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.root = Path(path) / FORMAT
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            self._refuse_network()  # before a lock is asked for, which may hang there
            self.root.chmod(0o700)  # whatever made it: token ids are prompts that anybody could read
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreFailed(f"cannot use {self.root} as a store: {error}") from error
        try:
            self._acquire()
        except BaseException:
            os.close(self._lock)
            raise
        self._clean = self._clean_mark.exists()

    def sign_off(self) -> None:
        """To be called when the store has ended in order: nobody need wonder why it ended."""
        os.ftruncate(self._lock, 0)

    def leave_as_found(self) -> None:
        """To be called in place of that when nothing was changed: who comes next need not wonder more than we did."""
        if self.was_signed_off:
            self.sign_off()

    @property
    def payload(self) -> Path:
        return self.root / "payload"

    @property
    def meta(self) -> Path:
        return self.root / "meta"

    @property
    def environments(self) -> tuple[Path, Path]:
        """The directories of LMDB's: that of the records, and that of their entries."""
        return self.payload, self.meta

    @property
    def retained(self) -> Path:
        """LMDB's directory of what users asked to keep, there once they have."""
        return self.root / "retained"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def namespaces(self) -> Path:
        return self.root / "namespaces"

    @property
    def baselines(self) -> Path:
        return self.root / "baselines"

    @property
    def encrypted_mark(self) -> Path:
        return self.root / "encrypted"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def clean(self) -> bool:
        """Whether everything in the environments is known to be on the disk."""
        return self._clean

    def mark_clean(self, counts: bytes) -> None:
        """To be called when the environments have been synced. `counts`: of what is in them, for the next opening."""
        if not self._clean:
            self._clean = True  # first: should this fail half-way, the next change must look for the mark
            try:
                write_new(self._clean_mark, counts)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._clean_mark.touch(mode=0o600)  # which takes no room: the next opening counts
                sync_path(self.root)

    def counts(self) -> bytes | None:
        """What `mark_clean` was given; None where it cannot be read. It holds as long as the directory is `clean`."""
        try:
            return self._clean_mark.read_bytes()
        except OSError:
            return None

    def mark_unclean(self) -> None:
        """To be called before a change. The mark is gone from the disk when this returns: a loss of power
        must not leave it beside half of a change.
        """
        if self._clean:
            self._clean_mark.unlink(missing_ok=True)
            sync_path(self.root)
            self._clean = False

    def set_aside(self, now_ns: int) -> Path:
        """Move both environments to a directory of their own, in place of what was set aside before.

        They may be open still, and go on as they are. Answers where they are now.
        """
        self.mark_unclean()
        self.drop_set_aside()
        aside = self.root / f"{ASIDE}{now_ns:020d}"
        aside.mkdir(mode=0o700)
        for environment in self.environments:
            if environment.exists():
                environment.rename(aside / environment.name)
        return aside

    def drop_set_aside(self) -> bool:
        """Delete what was set aside. Answers whether there was anything."""
        found = self.set_aside_paths()
        for aside in found:
            shutil.rmtree(aside, ignore_errors=True)
        return bool(found)

    def set_aside_paths(self) -> list[Path]:
        """Where what was set aside lies, oldest first."""
        return sorted(self.root.glob(f"{ASIDE}*"))

    def discard(self) -> None:
        """Delete both environments. They may be open still, and go on as they are; their space is free once they close."""
        self.mark_unclean()
        for environment in (self.meta, self.payload):  # an entry must not outlive its record
            shutil.rmtree(environment)

    def other_formats(self) -> list[Path]:
        """Directories beside this one that another version of this program made: named like one, with a lock in it."""
        return [
            each
            for each in sorted(self.root.parent.iterdir())
            if each.name != FORMAT and _ANY_FORMAT.fullmatch(each.name) and (each / "lock").is_file()
        ]

    def file_bytes(self) -> int:
        """What LMDB's files take of the disk."""
        return sum(map(tree_bytes, (*self.environments, self.retained)))

    def free_bytes(self) -> int:
        """What the file system would still give to this user."""
        return shutil.disk_usage(self.root).free

    def close(self) -> None:
        """Let others in. Safe to call twice."""
        if self._lock >= 0:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing alone would leave it with a forked child
            os.close(self._lock)
            self._lock = -1

    @property
    def _clean_mark(self) -> Path:
        return self.root / "clean"

    def _refuse_network(self) -> None:
        if (kind := file_system(self.root)) in NETWORK:
            raise StoreFailed(
                f"{self.root} is on {kind}, a network file system, where LMDB cannot keep its promises: choose a "
                "local directory"
            )

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLocked(f"{self.root} is open in {self._owner()}") from error
        except OSError as error:
            raise StoreFailed(f"{self.root} is on a file system without locks: {error}") from error
        try:
            self.was_signed_off = os.fstat(self._lock).st_size == 0
            os.ftruncate(self._lock, 0)
            self._sign_on()
        except OSError as error:
            raise StoreFailed(f"cannot write to {self.root}: {error}") from error

    def _sign_on(self) -> None:
        try:
            os.pwrite(self._lock, f"{os.getpid()} {_pid_namespace()}\n".encode(), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # to read a full disk, or to clear it, takes no room; without the mark who comes next looks closely as well
            self._clean_mark.unlink(missing_ok=True)

    def _owner(self) -> str:
        pid, _, namespace = os.pread(self._lock, 64, 0).decode(errors="replace").strip().partition(" ")
        elsewhere = "" if namespace == _pid_namespace() else ", counted in another container"
        return f"process {pid or 'unknown'}{elsewhere}"


def sync_path(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_new(path: Path, content: bytes) -> None:
    """Put a file there that is whole and on the disk, whatever happens; in place of one that is there."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def delete_all_but(folder: Path, is_kept: Callable[[str], bool]) -> None:
    """Delete the files in a folder, except those of names that are kept. What cannot be deleted stays: who asks next tries again."""
    with suppress(OSError):
        for path in folder.iterdir():
            if not is_kept(path.name):
                path.unlink()


def tree_bytes(folder: Path) -> int:
    """What the files below take of the disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def _pid_namespace() -> str:
    """What tells apart two processes with the same number, each in a namespace of its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "pid:unknown"
