"""Functions that numba compiles for this processor, as machine code that is kept and loaded without numba.

numba takes half a second to import and 110 MB of memory, and compiling takes seconds. So processes of their own compile
(kvstore.compiling), and what they answer is kept beside the modules that it was made of, or where that cannot be written in the user's
cache directory (NUMBA_CACHE_DIR names another). llvmlite alone, which numba brings, loads it. A name says all that the code depends on, and
a checksum that it is whole; what does not agree is compiled anew. Versions of kvtide that share a place keep their code side by side.
See docs/adr/0019.
"""

import ctypes
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import cache_from_source
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

import numpy as np

from kvstore.errors import StoreFailed

_log = logging.getLogger(__name__)

ENTRY: Final = "kvtide_entry"
"""The symbol of a function's code: a METH_FASTCALL of CPython's, bound to BOUND."""

BOUND: Final = (np.ndarray, TypeError, MemoryError)
"""What the code must know of this process."""

PYTHONS: Final = (
    "PyBool_FromLong",
    "PyErr_Occurred",
    "PyErr_SetString",
    "PyEval_RestoreThread",
    "PyEval_SaveThread",
    "PyFloat_AsDouble",
    "PyLong_AsLongLong",
    "PyLong_FromLongLong",
    "PyObject_IsTrue",
    "PyTuple_GetItem",
    "PyTuple_Size",
)
"""What it calls of Python's, all of the stable ABI."""

_MAGIC: Final = b"kvtide code 2\n"
_OWN: Final = ("kvstore.code", "kvstore.compiling", "kvstore.scratch")
_ROOT: Final = Path(__file__).resolve().parent.parent
_MOST_S: Final = 600.0
"""To compile in: some ten times what it takes on a slow machine."""

_MOST_KEPT: Final = 16
"""Of one function in one place, each made of other sources or for another machine: all functions together take 0.7 MB."""
_LATELY_S: Final = 86_400.0
"""Code that was used so lately is kept besides: two versions that start in turn, however many others there are, find their own."""
_NOTED_S: Final = 3_600.0
"""A use is noted if none was for so long: most starts only read."""


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
    import llvmlite.binding as llvm

    told = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    told.pop("NUMBA_CACHE_DIR", None)
    with suppress(OSError):
        told["file"] = Path(".numba_config.yaml").read_text(errors="replace")
    if not told:
        return Target(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), True, "")
    from numba.core import codegen, config

    settings: Any = config  # its names are made when it is imported
    features: Any = codegen.get_host_cpu_features
    return Target(
        llvm.get_host_cpu_name() if settings.CPU_NAME is None else str(settings.CPU_NAME),
        str(features() if settings.CPU_FEATURES is None else settings.CPU_FEATURES),
        not settings.DISABLE_JIT,
        json.dumps(told, sort_keys=True),
    )


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
    shelves = [_Shelf(function, folders) for function in functions]
    found = [shelf.find() for shelf in shelves]
    missing = [number for number, code in enumerate(found) if code is None]
    if missing:
        if getattr(
            sys, "frozen", False
        ):  # its executable is the program itself, which would be begun once more, and so on
            raise StoreFailed("a frozen program has no Python that compiles: run what it needs once unfrozen")
        wanted = [functions[number] for number in missing]
        facts = {"functions": ", ".join(f"{one.module}.{one.name}" for one in wanted)}
        _log.info("compiling for this machine, once, in some seconds: %(functions)s", facts, extra=facts)
        made = _compile(wanted)
        for number, code in zip(missing, made, strict=True):
            found[number] = code
            shelves[number].keep(code)
    return [
        _callable(code, function) for code, function in zip(found, functions, strict=True) if code is not None
    ]


_futures: Final[dict[tuple[Function, ...], Future[list[Callable[..., int]]]]] = {}
_futures_lock: Final = threading.Lock()


def loaded(*functions: Function) -> list[Callable[..., int]]:
    """`compiled`, once in a process: who asks while another thread does waits for that one."""
    with _futures_lock:
        future = _futures.get(functions)
        begins = future is None
        if future is None:
            future = _futures[functions] = Future()
    if begins:
        try:
            future.set_result(compiled(functions))
        except BaseException as error:
            del _futures[functions]  # the next may have more luck
            is_ours = not isinstance(error, Exception)  # who else waits was not interrupted
            future.set_exception(StoreFailed(f"interrupted while compiling: {error!r}") if is_ours else error)
            raise
    return future.result()


def _forget_others() -> None:
    """In the child of a fork: the threads that were compiling are none of its own, and will never answer."""
    for functions in [one for one, future in _futures.items() if not future.done()]:
        del _futures[functions]
    _futures_lock.release()


os.register_at_fork(
    before=_futures_lock.acquire, after_in_parent=_futures_lock.release, after_in_child=_forget_others
)


# --- keeping ----------------------------------------------------------------------------------------------------------


class _Shelf:
    """Where one function's code is kept, under a name that says of what and for what it is."""

    def __init__(self, function: Function, folders: Sequence[Path] | None) -> None:
        place = _path(function.module)
        self._folders = list(_folders(place)) if folders is None else folders
        taken = _digest_of(json.dumps((*function.arguments, function.keeps_gil)).encode())
        made_of = _digest_of(_made_by(), *map(_source, (*function.sources, *_OWN)))
        self._whose = f"{place.stem}.{function.name}-{taken[:16]}-"
        self._name = f"{self._whose}{made_of[:16]}.code"
        source = place.stat()
        self._mode, self._owner = source.st_mode & 0o644, source.st_uid  # for whoever may read the source
        self._key = (made_of + taken).encode()

    def find(self) -> bytes | None:
        """The code, if it is there and whole."""
        for folder in self._folders:
            with suppress(OSError):
                kept = _read(folder / self._name, self._owner)
                code = kept[len(_MAGIC) + 32 :]
                if kept == self._sealed(code):
                    self._note_use(folder)
                    return code
        return None

    def keep(self, code: bytes) -> None:
        """For later processes; what nobody has used for long makes way."""
        errors = []
        for folder in self._folders:
            try:
                self._write(folder, self._sealed(code))
            except OSError as error:
                errors.append(str(error))
                continue
            self._make_way(folder)
            return
        facts = {"error": "; ".join(errors)}
        _log.warning(
            "compiled code cannot be kept, each process compiles its own: %(error)s", facts, extra=facts
        )

    def _note_use(self, folder: Path) -> None:
        """In the file's time of writing: that of reading many file systems do not keep. Of a file that is another's, or lies where
        nothing can be written, its owner disposes.
        """
        path, now_s = folder / self._name, time.time()
        with suppress(OSError):
            if abs(now_s - path.stat().st_mtime) > _NOTED_S:
                os.utime(path)

    def _make_way(self, folder: Path) -> None:
        """Of this function's code, what ended processes have left half-written included, delete what is neither among the last
        _MOST_KEPT that were used nor was used lately. A process that has loaded its code needs the file no more.
        """
        used_s = {}
        with suppress(OSError):  # what may be written need not be listed
            for path in folder.glob(f"{self._whose}*"):
                with suppress(OSError):  # another deletes as well
                    used_s[path] = path.stat().st_mtime
        for path in sorted(used_s, key=used_s.__getitem__, reverse=True)[_MOST_KEPT:]:
            if used_s[path] < time.time() - _LATELY_S:
                with suppress(OSError):
                    path.unlink()

    def _write(self, folder: Path, sealed: bytes) -> None:
        """Whoever looks meanwhile finds all of it, or nothing; what a loss of power leaves fails its checksum."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=self._name, delete=False) as file:
            path = Path(file.name)
            try:
                os.fchmod(file.fileno(), self._mode)
                file.write(sealed)
                file.flush()
                path.replace(folder / self._name)
            except BaseException:
                path.unlink()
                raise

    def _sealed(self, code: bytes) -> bytes:
        return _MAGIC + hashlib.sha256(self._key + code).digest() + code


def _read(path: Path, owner: int) -> bytes:
    """A file that nobody has written but this user, whom it obeys anyway, or the owner of the source."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid not in {0, os.geteuid(), owner} or found.st_mode & 0o022:
            raise PermissionError(f"others may have written {path}")
        return file.read()


def _folders(place: Path) -> Iterator[Path]:
    """Where code of a module may be kept, the best first."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(named)
    yield Path(cache_from_source(str(place))).parent
    with suppress(RuntimeError):  # nobody's home
        yield Path.home() / ".cache" / "kvtide" / "code"


@cache
def _source(module: str) -> bytes:
    return _path(module).read_bytes()


def _path(module: str) -> Path:
    return (_ROOT / module.replace(".", "/")).with_suffix(".py")


def _made_by() -> bytes:
    """All that code depends on besides its sources and its arguments."""
    at = target()
    made_by = *map(_version, ("numba", "llvmlite")), np.__version__, sys.implementation.cache_tag
    return json.dumps((*made_by, at.cpu, at.features, at.settings)).encode()


_version: Final = cache(version)


def _digest_of(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


# --- compiling and loading --------------------------------------------------------------------------------------------


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


class _Method(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_FASTCALL: Final = 0x80

_owners: Final[list[Any]] = []
"""What owns the memory that code was loaded into, and what Python says of it: as long as there is this process."""


@cache
def _loader() -> Any:
    """LLVM's, which knows where Python's functions are, whichever library they are in."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in PYTHONS:
        llvm.add_symbol(name, ctypes.cast(ctypes.pythonapi[name], ctypes.c_void_p).value)
    return llvm.Target.from_default_triple()


def _callable(code: bytes, function: Function) -> Callable[..., int]:
    import llvmlite.binding as llvm

    machine = _loader().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    method = _Method(function.name.encode(), engine.get_function_address(ENTRY), _FASTCALL, None)
    _owners.append((engine, method))
    builtin = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.py_object)(
        ("PyCFunction_NewEx", ctypes.pythonapi)
    )
    made: Callable[..., int] = builtin(ctypes.addressof(method), BOUND, function.module)
    return made
