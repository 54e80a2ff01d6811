"""How many cores there are to work on."""

import os


def num_cores() -> int:
    """Those that this process may use; all of the machine's where the system does not say, as only Linux does."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
