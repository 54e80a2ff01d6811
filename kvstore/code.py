"""Functions that numba compiles for this processor, as machine code that is kept and loaded without numba.

numba takes half a second to import and 110 MB of memory, and compiling takes seconds. So processes of their own compile
(kvstore.compiling), and what they answer is kept beside the modules that it was made of, or where that cannot be written in the user's
cache directory (NUMBA_CACHE_DIR names another): kvstore.shelf. kvstore.machine_code loads it. A name says all that the code depends on, and
a checksum that it is whole; what does not agree is compiled anew. Versions of kvtide that share a place keep their code side by side.
See docs/adr/0019.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from kvstore.errors import StoreFailed
from kvstore.machine_code import loaded_code
from kvstore.shelf import Shelf, digest_of
from kvstore.target import made_by, target

_log = logging.getLogger(__name__)

_OWN: Final = ("kvstore.compiling", "kvstore.linking", "kvstore.machine_code", "kvstore.scratch")
_ROOT: Final = Path(__file__).resolve().parent.parent
_MOST_S: Final = 600.0
"""To compile in: some ten times what it takes on a slow machine."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of Python's to be compiled.

    name: of the function in `module`.   sources: all modules, that one among them, of which the code is made.   arguments: each
    "int64", "float64", "bool", "none", or an array: the name of its dtype, the number of its dimensions, and of these words those that
    are true: "written" (else it may be read-only), "strided" (else it is contiguous), "anywhere" (else it is aligned). Several together are a tuple of such.   keeps_gil: while it runs, as it takes a microsecond or so.
    """

    module: str
    name: str
    sources: tuple[str, ...]
    arguments: tuple[str | tuple[str, ...], ...]
    keeps_gil: bool = False


def compiled(
    functions: Sequence[Function], folders: Sequence[Path] | None = None
) -> list[Callable[..., int]]:
    """Each compiled, loaded if it was kept. What is missing one other process compiles, in seconds; any thread may wait for that.

    They release the GIL unless they are to keep it, and raise TypeError for arguments that are not as they were said to be, before anything
    is read or written; MemoryError where there was no memory, or a number was divided by zero. They answer an int; 0 where the function answers nothing.
    folders: where code is kept, in place of the usual; the first that can be written gets what is new. Raises StoreFailed where
    numba may not compile, or does not.
    """
    if not target().may_compile:
        raise StoreFailed("NUMBA_DISABLE_JIT is set: numba may not compile what this needs; unset it")
    shelves = [_shelf(function, folders) for function in functions]
    found = [shelf.find() for shelf in shelves]
    missing = [number for number, code in enumerate(found) if code is None]
    if missing:
        # its executable is the program itself, which would be begun once more, and so on
        if getattr(sys, "frozen", False):
            raise StoreFailed("a frozen program has no Python that compiles: run what it needs once unfrozen")
        wanted = [functions[number] for number in missing]
        facts = {"functions": ", ".join(f"{one.module}.{one.name}" for one in wanted)}
        _log.info("compiling for this machine, once, in some seconds: %(functions)s", facts, extra=facts)
        made = _compile(wanted)
        for number, code in zip(missing, made, strict=True):
            found[number] = code
            if (why := shelves[number].keep(code)) is not None:
                facts = {"error": why}
                told = "compiled code cannot be kept, each process compiles its own: %(error)s"
                _log.warning(told, facts, extra=facts)
    names, modules = zip(*((one.name, one.module) for one in functions), strict=True)
    return loaded_code([code for code in found if code is not None], names, modules)


def are_kept(functions: Sequence[Function]) -> bool:
    """Whether none seems to have to be compiled, as far as can be seen without looking at what is kept."""
    return all(_shelf(function).is_there for function in functions)


_futures: Final[dict[Function, Future[Callable[..., int]]]] = {}
_futures_lock: Final = threading.Lock()


def loaded(*functions: Function) -> list[Callable[..., int]]:
    """`compiled`, each once in a process: who asks for one while another thread has it compiled waits for that one."""
    with _futures_lock:
        mine = {one: Future[Callable[..., int]]() for one in functions if one not in _futures}
        _futures.update(mine)
        futures = [_futures[one] for one in functions]
    if mine:
        try:
            for future, made in zip(mine.values(), compiled(list(mine)), strict=True):
                future.set_result(made)
        except BaseException as error:
            is_ours = not isinstance(error, Exception)  # who else waits was not interrupted
            told = StoreFailed(f"interrupted while compiling: {error!r}") if is_ours else error
            for function, future in mine.items():
                del _futures[function]  # the next may have more luck
                future.set_exception(told)
            raise
    return [future.result() for future in futures]


def _forget_others() -> None:
    """In the child of a fork: the threads that were compiling are none of its own, and will never answer."""
    for function in [one for one, future in _futures.items() if not future.done()]:
        del _futures[function]
    _futures_lock.release()


os.register_at_fork(
    before=_futures_lock.acquire, after_in_parent=_futures_lock.release, after_in_child=_forget_others
)


# --- what it is made of -----------------------------------------------------------------------------------------------


def _shelf(function: Function, folders: Sequence[Path] | None = None) -> Shelf:
    """Where its code is kept."""
    taken = digest_of(json.dumps((*function.arguments, function.keeps_gil)).encode())
    made_of = digest_of(_made_by(), taken.encode(), *map(_digest, (*function.sources, *_OWN)))
    return Shelf(_path(function.module), f"{function.name}-{taken[:16]}", made_of, folders)


@cache
def _digest(module: str) -> bytes:
    return digest_of(_source(module)).encode()


def _source(module: str) -> bytes:
    return _path(module).read_bytes()


def _path(module: str) -> Path:
    return (_ROOT / module.replace(".", "/")).with_suffix(".py")


def _made_by() -> bytes:
    """All that code depends on besides its sources and its arguments."""
    at = target()
    return b"".join(
        (
            *map(made_by, ("numba", "llvmlite")),
            json.dumps(
                (np.__version__, sys.implementation.cache_tag, at.cpu, at.features, at.settings)
            ).encode(),
        )
    )


# --- compiling --------------------------------------------------------------------------------------------------------


_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from kvstore.compiling import main; main()"
)
"""It finds modules where this process does."""


def _compile(functions: Sequence[Function]) -> list[bytes]:
    """By another process, which may take memory, keep the GIL and end as it likes."""
    asked = json.dumps(
        [(one.module, one.name, one.sources, one.arguments, one.keeps_gil) for one in functions]
    )
    command = [
        sys.executable or "python3",
        "-P",
        "-c",
        _PROGRAM,
        json.dumps([*sys.path, str(_ROOT)], default=str),
    ]
    try:
        done = subprocess.run(
            command,
            input=asked.encode(),
            capture_output=True,
            timeout=_MOST_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StoreFailed(f"no process could be had that compiles: {error}") from error
    made, at = [], 0
    for _ in functions:
        size = int.from_bytes(done.stdout[at : at + 8], "little")
        made.append(done.stdout[at + 8 : at + 8 + size])
        at += 8 + size
    if done.returncode or at != len(done.stdout):
        told = done.stderr.decode(errors="replace").strip()
        raise StoreFailed(
            f"numba does not compile {functions[0].module} (ended with {done.returncode}): {told[-2000:]}"
        )
    return made
