"""The kernels of the CPU's forward pass: what this processor has for them, and how they come to be. Importing this takes no numba."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from kvstore.code import Function, loaded
from kvstore.target import target

_HAS: Final = frozenset(name[1:] for name in target().features.split(",") if name.startswith("+"))

WIDTH: Final = (
    0 if not target().may_compile else 16 if "avx512f" in _HAS else 8 if {"avx2", "fma"} <= _HAS else 0
)
"""Lanes of one register; 0 where the kernel would be slow."""

HAS_PAIRS: Final = WIDTH == 16 and "avx512bf16" in _HAS
"""Whether there are products of bfloat16 by twos, summed in float32."""

# A product keeps ROWS x VECTORS sums in registers, of which AVX-512 has 32 and AVX2 has 16, and needs some more.
VECTORS: Final = 3 if WIDTH == 16 else 2
ROWS: Final = 8 if WIDTH == 16 else 4

UNIT: Final = VECTORS * (WIDTH or 1)
"""Lanes that are computed together: what threads share out among them."""

CHUNK: Final = 128
"""Tokens of which the scores are computed together, and one maximum is taken. They begin at multiples of it, so that a lane's bits
do not depend on where a call begins."""

_WAITING: Final = (
    "engine.native",
    "engine.lane_vectors",
    "engine.lane_signals",
    "engine.waiting",
    "kvstore.scratch",
)
_LANES: Final = (*_WAITING, "engine.lane_products", "engine.lane_words", "engine.lane_kernel")
_DECODER: Final = (*_LANES, "engine.layer_kernel", "engine.head_kernel", "engine.decoder_kernel")


def registers() -> tuple[int, bool]:
    """Of this processor, as far as numba may use it: WIDTH and HAS_PAIRS."""
    return WIDTH, HAS_PAIRS


def _array(item: str, ndim: int, *, strided: bool = False) -> str:
    return f"{item} {ndim} written" + " strided" * strided


@cache
def attending(query: Any, layer: Any) -> Callable[..., int]:
    """`attend` of engine/lane_kernel.py for numpy's dtypes of these: for any strides."""
    numbers = _array("int64", 1)
    given: tuple[str | tuple[str, ...], ...] = (
        _array(query.name, 3, strided=True),
        _array(layer.name, 5, strided=True),
        numbers,
        ("int64",) * 2,
        *["int64"] * 2,
        "float64",
        *["int64"] * 2,
        _array(query.name, 3),
        numbers,
    )
    return loaded(Function("engine.lane_kernel", "attend", _LANES, given))[0]


@cache
def computing(dtype: Any, stored: Any) -> Callable[..., int]:
    """`_compute` of engine/decoder_kernel.py for numbers of this dtype of numpy's over a pool of that one."""
    one, two, three, four = (_array(dtype.name, ndim) for ndim in (1, 2, 3, 4))
    floats, integers = _array("float32", 2), _array("int64", 1)
    weights = (three, four, floats, three, four, floats, four, floats, four, floats, one, two)
    scratch = (two, floats, three, four, two, three, floats, two, two, two)
    given = (
        ("int64",) * 2,
        "int64",
        two,
        weights,
        "float64",
        (two, two),
        scratch,
        ("bool", _array(stored.name, 6), integers, integers),
        (_array("int64", 3), integers, integers, "float64"),
        integers,
        floats,
        integers,
        _array("int64", 2),
    )
    return loaded(Function("engine.decoder_kernel", "_compute", _DECODER, given))[0]


@cache
def watching() -> Callable[..., int]:
    """`_watch` of engine/waiting.py."""
    return loaded(Function("engine.waiting", "_watch", _WAITING, ("int64",) * 3))[0]
