"""JSON as the endpoint writes it."""

import os
from typing import Any

import msgspec
import numpy as np


def _plain(value: Any) -> Any:
    """What msgspec does not know by itself: numpy's numbers in figures, and paths in settings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, slice | range):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


encoded = msgspec.json.Encoder(enc_hook=_plain).encode
"""Any of our values as JSON, bytes. Numbers that JSON does not have are null."""
