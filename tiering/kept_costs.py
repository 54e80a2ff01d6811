"""What loading and computing took, kept beside a disk store: an engine that starts again decides well at once.

    FOLDER/<digest of the facts>.json    {"version": 1, "facts": {...}, "saved_s": seconds since the epoch, "costs": Costs.as_json()}

The facts are all that the times depend on: model, hardware and settings. They are in the file as well, so that people can see what
it is of. A file that is damaged, or of other facts than its name says, is not used: the engine learns anew. No prompt can be
read from one: it has sizes and times.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tiering.costs import Costs

VERSION: Final = 1
MAX_BYTES: Final = 1 << 20
"""Of a file: one of many sizes has a tenth of it."""
BYTES_FACT: Final = "token_bytes"
"""A fact that a reader may want: of KV."""
_MOST_FILES: Final = 16
"""Of other facts than these, such as settings that were tried once, the last ones are left."""

_log = logging.getLogger(__name__)


class CostsFile:
    """The file of these facts. One thread at a time; nothing here raises: without it everything works, only not as well at first."""

    def __init__(
        self, folder: Path, facts: Mapping[str, str], *, now_s: Callable[[], float] = time.time
    ) -> None:
        """`folder` is made when something is kept; what it lies in must be there. `now_s`: seconds since the epoch."""
        self._facts, self._now_s = dict(facts), now_s
        named = json.dumps(self._facts, sort_keys=True).encode()
        self.path = folder / f"{hashlib.sha256(named).hexdigest()[:32]}.json"

    def load(self) -> Costs:
        """What was kept, of less weight the older it is. Nothing known where there is none, or no good one: then one line is logged."""
        try:
            with self.path.open("rb") as file:
                return self._read(file.read(MAX_BYTES))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError) as error:
            _log.warning(
                "what loading and computing took before is not known: %s: %s",
                self.path,
                error,
                extra={"path": self.path, "error": error},
            )
        return Costs()

    def _read(self, content: bytes) -> Costs:
        found = json.loads(content)
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise ValueError(f"no costs of version {VERSION} are in it")
        if found.get("facts") != self._facts:
            raise ValueError("it is of another model, machine or configuration")
        saved_s = found.get("saved_s")
        if not isinstance(saved_s, int | float):
            raise ValueError(f"saved_s must be a number of seconds, not {saved_s!r}")
        return Costs.from_json(found.get("costs"), age_s=max(0.0, self._now_s() - saved_s))

    def save(self, costs: Costs) -> None:
        """Keep this in place of what was kept. Blocks on the disk; where that is full, one line is logged."""
        from kvstore.disk.directory import write_new  # needs lmdb, as does who has a disk to keep this on

        kept: dict[str, Any] = {
            "version": VERSION,
            "facts": self._facts,
            "saved_s": self._now_s(),
            "costs": costs.as_json(),
        }
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            write_new(self.path, json.dumps(kept).encode())
        except OSError as error:
            _log.warning(
                "what loading and computing took is not kept: %s",
                error,
                extra={"path": self.path, "error": error},
            )
        self._forget_others()

    def _forget_others(self) -> None:
        """But for the last of them."""
        with suppress(OSError):
            others = [path for path in self.path.parent.iterdir() if path != self.path]
            others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in others[_MOST_FILES:]:
                path.unlink()


def read_costs(found: object) -> tuple[Costs, int | None]:
    """Costs of what a file like these holds, whatever its facts are, or of `Costs.as_json` itself; and bytes of KV a token, if it says.

    Raises ValueError for anything else.
    """
    if not isinstance(found, Mapping) or "costs" not in found:
        return Costs.from_json(found), None
    facts = found.get("facts")
    told = facts.get(BYTES_FACT) if isinstance(facts, Mapping) else None
    token_bytes = int(told) if isinstance(told, str) and told.isdecimal() else 0
    return Costs.from_json(found["costs"]), token_bytes or None
