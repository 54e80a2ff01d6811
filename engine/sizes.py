"""Sizes in bytes: how a user writes them, and how much memory this process may take."""

import re
from pathlib import Path
from typing import Final

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_MOST: Final = 2**63 - 1
"""8 EiB less a byte: what C, LMDB and numpy count bytes with."""
_MOST_LENGTH: Final = 64
"""Characters of a size."""
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(value: int | str, what: str = "size") -> int:
    """Turn 4096, "64MiB", "1.5GB" or "512 kB" into a whole number of bytes.

    kB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB powers of 1024; letter case is ignored.
    `what` names the value in the error. Raises ValueError for anything else, negative numbers and 8 EiB included.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{what} must be a number of bytes or a string such as '64MiB', not {value!r}")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{what} must not be negative, got {value}")
        return _small_enough(value, what)
    match = _SIZE.fullmatch(value) if len(value) <= _MOST_LENGTH else None
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{what} must look like 4096, '64MiB', '1.5GB' or '512 kB', not {value!r}")
    size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    return _small_enough(size, what)


def _small_enough(size: int, what: str) -> int:
    if size > _MOST:
        raise ValueError(f"{what} must be less than 8 EiB")
    return size


def format_bytes(num_bytes: int) -> str:
    """Write a size for people: 1536 becomes "1.5 KiB"."""
    size, unit = float(num_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Host memory that this process may still take, in bytes.

    The smaller of what the machine has available and what is left below the memory limit of every control
    group (v2 or v1) that holds the process: in a container the machine's own figure is far too large.
    Reads files only. `root` is there for tests.
    """
    candidates = [_machine_available_bytes(root), *_cgroup_left_bytes(root)]
    return max(0, min(candidates))


def _machine_available_bytes(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable line")


def _cgroup_left_bytes(root: Path) -> list[int]:
    left = []
    for folder, limit_name, usage_name in _cgroup_folders(root):
        limit, usage = _read_int(folder / limit_name), _read_int(folder / usage_name)
        if limit is not None and usage is not None:
            left.append(limit - usage + _reclaimable_bytes(folder))
    return left


def _cgroup_folders(root: Path) -> list[tuple[Path, str, str]]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # Every ancestor may set a limit; inside a container the path may not exist below the mount.
        inside = Path(path.lstrip("/"))
        folders += [(base / part, *names) for part in (inside, *inside.parents)]
    return folders


def _reclaimable_bytes(folder: Path) -> int:
    """Page cache counts as usage of the group, but the kernel gives it back under pressure."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(maxsplit=1) for line in lines if " " in line)
    value = stat.get("inactive_file", stat.get("total_inactive_file", "0"))
    return int(value)


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
