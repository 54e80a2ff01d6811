"""The keys of a disk store that is encrypted: one for each owner of blocks, wrapped by a master key that is elsewhere.

    PATH/v1/encrypted        says so, since the store was first opened with a master key; tells that key from others
    PATH/v1/keys/<name>      an owner's key, wrapped; the name begins with a keyed digest of the owner, and ends at random

To destroy the file is to erase the owner's blocks, wherever copies of them may still lie. See docs/privacy.md. That of an owner of whom
nothing is left goes at the next opening: at any other time a record may have been sealed that is not written yet.
"""

import hmac
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Container
from hashlib import blake2b
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kvstore.disk.directory import Directory, sync_path, write_new
from kvstore.disk.envelope import NAME_BYTES, NONCE_BYTES
from kvstore.disk.master_key import MASTER_KEY_BYTES
from kvstore.errors import StoreFailed

_SALT_BYTES: Final = 32
_OWNER_BYTES: Final = 8
"""Of a name, those that tell the owner."""
_MOST_OPEN: Final = 1024
"""Keys that are in memory as they are: of more owners than that nobody asks all at once."""
_A_NAME: Final = f"[0-9a-f]{{{2 * NAME_BYTES}}}"


class Keyring:
    """The owners' keys of one directory. Any thread may call it.

    One key encrypts at most 2^32 times before its random nonces may repeat: a petabyte of blocks.
    """

    def __init__(self, directory: Directory, master_key: bytes) -> None:
        """Make the directory an encrypted one, if nothing rests there yet. Raises StoreFailed if it is not for this key."""
        self._folder = directory.keys
        try:
            salt = _joined(directory, master_key)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            sync_path(directory.root)
            self._names = {name[:_OWNER_BYTES]: name for name in _names(self._folder)}
        except OSError as error:
            raise StoreFailed(f"cannot use the keys of {directory.root}: {error}") from error
        self._wrapping = AESGCM(_derived(master_key, salt, b"wrapping"))
        self._name_key = _derived(master_key, salt, b"names")
        self._lock = threading.Lock()
        self._keys: OrderedDict[bytes, AESGCM] = OrderedDict()
        """Those used last; the others are read again."""

    def hidden(self, key: bytes) -> bytes:
        """Another name for a block, as long as its key: the key is a digest of a prompt that could be guessed."""
        return blake2b(key, key=self._name_key, digest_size=len(key), person=b"kvtide-block").digest()

    def is_owners(self, name: bytes, owner: bytes) -> bool:
        """Whether a key of this name is, or was, the owner's."""
        return name[:_OWNER_BYTES] == self._digest(owner)

    def key_for(self, owner: bytes) -> tuple[bytes, AESGCM]:
        """The owner's key and its name; made, and on disk when this returns, if there was none."""
        digest = self._digest(owner)
        with self._lock:
            name = self._names.get(digest)
            key = None if name is None else self._known(name)
            if name is None or key is None:
                # never a name that was there before: what rests under it must not be taken for this key's
                name = digest + os.urandom(NAME_BYTES - _OWNER_BYTES)
                key = self._make(name)
                self._remember(name, key)
                self._names[digest] = name
        return name, key

    def key_of(self, name: bytes) -> AESGCM | None:
        """The key under a name; None if there is none, or none any more."""
        with self._lock:
            return self._known(name)

    def destroy(self, owner: bytes) -> None:
        """Overwrite and delete the owner's keys. They are gone from the disk when this returns, as far as it goes along.

        Raises StoreFailed if that fails; a key may be there still.
        """
        self._destroy(lambda name: self.is_owners(name, owner))

    def forget_all_but(self, names: Container[bytes], owner: bytes) -> None:
        """Likewise with all keys but those of these names, and this owner's. Nobody may be about to use any other."""
        self._destroy(lambda name: name not in names and not self.is_owners(name, owner))

    def _destroy(self, is_doomed: Callable[[bytes], bool]) -> None:
        with self._lock:
            # first: nothing more must be sealed with a key that was overwritten, and could then not be deleted
            for name in [*filter(is_doomed, self._names.values())]:
                del self._names[name[:_OWNER_BYTES]]
            for name in [*filter(is_doomed, self._keys)]:
                del self._keys[name]
            try:
                for name in filter(is_doomed, _names(self._folder)):
                    _overwrite(self._path(name))
                    self._path(name).unlink()
                sync_path(self._folder)
            except OSError as error:
                raise StoreFailed(f"cannot destroy a key: {error}") from error

    def _digest(self, owner: bytes) -> bytes:
        return blake2b(owner, key=self._name_key, digest_size=_OWNER_BYTES, person=b"kvtide-owner").digest()

    def _known(self, name: bytes) -> AESGCM | None:
        key = self._keys.get(name)
        if key is None:
            key = self._read(name)
        if key is not None:
            self._remember(name, key)
        return key

    def _remember(self, name: bytes, key: AESGCM) -> None:
        self._keys[name] = key
        self._keys.move_to_end(name)
        if len(self._keys) > _MOST_OPEN:
            self._keys.popitem(last=False)

    def _read(self, name: bytes) -> AESGCM | None:
        try:
            wrapped = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreFailed(f"cannot read a key: {error}", temporary=True) from error
        try:
            return AESGCM(self._wrapping.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], name))
        except (InvalidTag, ValueError):
            return None  # damaged: what it encrypted is lost, and a new key takes its place

    def _make(self, name: bytes) -> AESGCM:
        key, nonce = os.urandom(MASTER_KEY_BYTES), os.urandom(NONCE_BYTES)
        try:
            write_new(self._path(name), nonce + self._wrapping.encrypt(nonce, key, name))
        except OSError as error:
            raise StoreFailed(f"cannot write a key: {error}", temporary=True) from error
        return AESGCM(key)

    def _path(self, name: bytes) -> Path:
        return self._folder / name.hex()


def _names(folder: Path) -> list[bytes]:
    """The names of the keys that are there, in order."""
    found = sorted(file.name for file in folder.iterdir())
    return [bytes.fromhex(name) for name in found if re.fullmatch(_A_NAME, name)]


def _joined(directory: Directory, master_key: bytes) -> bytes:
    """The salt of an encrypted directory, which is made one first if nothing rests there yet."""
    mark = directory.encrypted_mark
    try:
        content = bytes.fromhex(mark.read_text())
    except FileNotFoundError:
        if any((environment / "data.mdb").exists() for environment in directory.environments):
            raise StoreFailed(
                f"{directory.root} holds blocks that are not encrypted; to delete them: "
                f"kvtide disk clear {directory.root.parent}"
            ) from None
        salt = os.urandom(_SALT_BYTES)
        write_new(mark, (salt + _derived(master_key, salt, b"check")).hex().encode())
        return salt
    except ValueError:
        content = b""
    if len(content) != _SALT_BYTES + MASTER_KEY_BYTES:
        raise StoreFailed(f"{mark} is damaged: what it stood for cannot be read any more")
    salt, check = content[:_SALT_BYTES], content[_SALT_BYTES:]
    if not hmac.compare_digest(check, _derived(master_key, salt, b"check")):
        raise StoreFailed(f"{directory.root} is encrypted with another key than that of disk_key_file")
    return salt


def _derived(master_key: bytes, salt: bytes, purpose: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), MASTER_KEY_BYTES, salt, b"kvtide " + purpose).derive(master_key)


def _overwrite(path: Path) -> None:
    """With noise: on a disk that writes in place, what was there is gone."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
