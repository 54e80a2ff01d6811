"""When host memory is ready: an engine serves before it is, and a measurement is to begin with all of it."""

import time

from engine.engine import Engine

GIVE_UP_S = 60.0
"""Page-locking takes some tenths of a second a gigabyte."""


def wait_for_host_memory(engine: Engine, give_up_s: float = GIVE_UP_S) -> None:
    """Return when every host slot may be used. Raises RuntimeError if that takes so long, as where CUDA refuses."""
    assert isinstance(engine.config.host_bytes, int), "measurements state their sizes"
    wanted = engine.config.host_bytes // engine.layout.block_bytes
    deadline_s = time.monotonic() + give_up_s
    while (found := engine.stats()["cache"]["tiers"]["host"]["slots"]) < wanted:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"host memory has {found} of {wanted} slots after {give_up_s:.0f} s")
        time.sleep(0.01)
