"""Reading files that users name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parsed(file: Path, name: str, kind: str = "JSON", loads: Callable[[str], Any] = json.loads) -> Any:
    """What a file of this kind says. ValueError, with a sentence that calls the file by `name`, where it cannot be read as such."""
    try:
        return loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # what parsers and decoders raise are ValueErrors
        raise ValueError(f"{name} is no {kind}: {error}") from error
