"""Running out of memory, told as the settings to lower."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .config import EngineConfig
from .sizes import format_bytes


class OutOfMemory(ValueError):
    """There was no memory, of the device or the host, for what the settings ask for; the sentence says what to lower."""


# Failures without a type of their own: of torch's allocator for the CPU, and of CUDA beside torch's allocator.
_SAID = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@contextmanager
def memory_for(what: str, advice: str) -> Iterator[None]:
    """Turn running out of memory inside into OutOfMemory: there is none for `what`, `advice`, and what was said of it."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if not _ran_out(error):
            raise
        raise OutOfMemory(f"there is no memory for {what}: {advice} ({_short(error)})") from error


def lower(config: EngineConfig, *names: str) -> str:
    """The advice to lower one of these settings, with their values."""
    *most, last = [f"{name} (now {_value(config, name)})" for name in names]
    return f"lower {', '.join(most)} or {last}" if most else f"lower {last}"


def pool_setting(config: EngineConfig, device: str) -> str:
    """The setting that decides how large the block pool is on this kind of device."""
    return "device_memory_fraction" if device == "cuda" and config.device_bytes == "auto" else "device_bytes"


def _value(config: EngineConfig, name: str) -> str:
    value = getattr(config, name)
    return format_bytes(value) if name.endswith("_bytes") and isinstance(value, int) else str(value)


def _ran_out(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        said in str(error) for said in _SAID
    )


def _short(error: Exception) -> str:
    """How much was asked for stands in the first two sentences; on CUDA a page on torch's allocator follows."""
    return ". ".join(str(error).split(". ")[:2])
