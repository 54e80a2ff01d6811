"""The garbage collector, kept from looking at what comes and stays while it comes."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_MANY: Final = 100_000
"""New objects that are worth a look at everything there is."""


@contextmanager
def paused() -> Iterator[None]:
    """Nothing is collected meanwhile, on no thread; then at once what is many.

    torch and transformers are half a million objects: with the collector a quarter of the time of importing them goes into
    looking whether they are garbage yet. Looked at once and found alive, they are old, and seldom looked at again.
    """
    if not gc.isenabled():  # then it is somebody else who will enable it
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if gc.get_count()[0] > _MANY:
            gc.collect()
