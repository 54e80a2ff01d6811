"""The key that all others of an encrypted store come from: it lies in a file, and not where the store lies."""

import os
from pathlib import Path
from typing import Final

from kvstore.errors import StoreFailed

MASTER_KEY_BYTES: Final = 32


def read_master_key(path: str | os.PathLike[str]) -> bytes:
    """The key in a file: 32 bytes as they are, or 64 hexadecimal digits in text, as `openssl rand -hex 32` writes them.

    Raises StoreFailed for any other content, and for a file that cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(1024)
    except OSError as error:
        raise StoreFailed(f"cannot read the key file: {error}") from error
    if len(content) == MASTER_KEY_BYTES:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != MASTER_KEY_BYTES:
        raise StoreFailed(
            f"{os.fspath(path)} is no key file: it must hold {MASTER_KEY_BYTES} bytes or {2 * MASTER_KEY_BYTES} "
            "hexadecimal digits (openssl rand -hex 32)"
        )
    return key
