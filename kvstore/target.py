"""The processor that code is compiled for, as LLVM sees it."""

import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from kvstore.shelf import Shelf, digest_of

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_PROCESSORS: Final = Path("/proc/cpuinfo")
_FIRST_BYTES: Final = 8192
"""Of those, for the first one: all others are described in as many words, which takes the system long."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is compiled for, as numba has it, and whether numba may compile. settings: of numba's, on which code may depend."""

    cpu: str
    features: str
    may_compile: bool
    settings: str


@cache
def target() -> Target:
    """This processor, or less if numba was told so: it is only asked if it was told anything, as importing it takes long."""
    told = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    told.pop("NUMBA_CACHE_DIR", None)
    with suppress(OSError):
        told["file"] = Path(".numba_config.yaml").read_text(errors="replace")
    if not told:
        return Target(*_processor(), True, "")
    from numba.core import codegen, config

    settings: Any = config  # its names are made when it is imported
    features: Any = codegen.get_host_cpu_features
    cpu, _ = _processor()
    return Target(
        cpu if settings.CPU_NAME is None else str(settings.CPU_NAME),
        str(features() if settings.CPU_FEATURES is None else settings.CPU_FEATURES),
        not settings.DISABLE_JIT,
        json.dumps(told, sort_keys=True),
    )


def _processor() -> tuple[str, str]:
    """Its name and what it has, as LLVM says. That is asked once since the system was started, as llvmlite takes long to import too."""
    shelf = None
    with suppress(OSError):
        shelf = Shelf(Path(__file__), "processor", _machine())
        if (kept := shelf.find()) is not None:
            cpu, features = json.loads(kept)
            return cpu, features
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    if shelf is not None:
        shelf.keep(json.dumps(found).encode())
    return found


def _machine() -> str:
    """A digest of all that LLVM's answer depends on. Raises OSError where the system does not say since when it runs, and on what."""
    with _PROCESSORS.open("rb", buffering=0) as file:
        first = file.read(_FIRST_BYTES).partition(b"\n\n")[0]
    lines = [line for line in first.splitlines() if b"MHz" not in line]
    return digest_of(_BOOT.read_bytes(), platform.machine().encode(), made_by("llvmlite"), *lines)


@cache
def made_by(package: str) -> bytes:
    """An installed package's version, without importing it or what reads the names of all that are installed."""
    found = find_spec(package)
    assert found is not None and found.origin is not None, f"{package} is installed with this"
    try:
        return Path(found.origin).with_name("_version.py").read_bytes()
    except OSError:  # others may leave it out
        from importlib.metadata import version

        return version(package).encode()
