"""How threads that compute together wait for each other, compiled: of engine/team.py and of the decoder's kernel."""

from typing import Any, Final

import numpy as np
from numba import njit

from .lane_signals import count, rest, seen, sleep, ticks

_TRIES: Final = 64
"""How often a thread looks at a number before it looks at the clock."""

_MOST_TRIES: Final = 4096
"""How often it looks before it sleeps a little: whoever it waits for has no core. To offer it its own by `sched_yield` would cost a turn."""

_NAP_US: Final = 50

COMPILED: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy", "_nrt": False}
"""How everything is compiled that computes."""

INSIDE: Final[dict[str, Any]] = {**COMPILED, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""And what is only called by what is compiled: without what calls it from elsewhere, which takes as long to compile."""


@njit(**INSIDE)
def wait_for(progress: Any, stage: int, num_tasks: int) -> None:
    """Until so many tasks of a stage are done. progress: int64, the next task, and how many are done of each stage."""
    tries = 0
    while seen(progress.ctypes.data + 8 * (1 + stage)) < num_tasks:
        tries += 1
        if tries < _MOST_TRIES:
            rest()
        else:
            sleep(np.uint32(_NAP_US))


@njit(**INSIDE)
def done(progress: Any, stage: int) -> None:
    """One more task of a stage is."""
    count(progress.ctypes.data + 8 * (1 + stage))


def _watch(address: int, number: int, most_ticks: int) -> bool:
    """Whether the int64 at an address is another one than that, or becomes another one before so many ticks of the clock are over."""
    begun, tries = ticks(), 0
    while seen(address) == number:
        tries += 1
        rest()
        if tries % _TRIES == 0 and ticks() - begun > most_ticks:
            return False
    return True
