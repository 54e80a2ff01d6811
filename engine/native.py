"""The kernels of the CPU's forward pass: what this processor has for them, and how they come to be. Importing this takes no numba."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

from kvstore.code import Function, loaded, target

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

PROGRESS: Final = 5
"""Numbers of what threads of a layer's kernel know of each other: the next task, and how many are done of each stage."""

_VECTORS: Final = ("engine.native", "engine.lane_vectors", "engine.lane_products", "kvstore.scratch")
_LANES: Final = (*_VECTORS, "engine.lane_kernel")
_LAYERS: Final = (*_VECTORS, "engine.layer_kernel")


def registers() -> tuple[int, bool]:
    """Of this processor, as far as numba may use it: WIDTH and HAS_PAIRS."""
    return WIDTH, HAS_PAIRS


def _array(item: str, ndim: int, *, strided: bool = False) -> str:
    return f"{item} {ndim} written" + " strided" * strided


@cache
def attending(query: Any, layer: Any) -> Callable[..., int]:
    """`_attend` of engine/lane_kernel.py for numpy's dtypes of these: for any strides."""
    numbers = _array("int64", 1)
    given = (
        _array(query.name, 3, strided=True),
        _array(layer.name, 5, strided=True),
        numbers,
        *["int64"] * 4,
        "float64",
        *["int64"] * 2,
        _array("float32", 3),
        numbers,
    )
    return loaded(Function("engine.lane_kernel", "_attend", _LANES, given))[0]


def preceding(dtype: Any) -> Callable[..., int]:
    """`_before` of engine/layer_kernel.py for arrays of this dtype of numpy's."""
    return _around(dtype)[0]


def following(dtype: Any) -> Callable[..., int]:
    """`_after` likewise."""
    return _around(dtype)[1]


@cache
def _around(dtype: Any) -> Sequence[Callable[..., int]]:
    """Both: they have much in common, which is compiled once."""
    one, two, three, four = (_array(dtype.name, ndim) for ndim in (1, 2, 3, 4))
    floats, wide = (_array("float32", ndim) for ndim in (1, 2))
    weighed, shared = (three, floats), (_array("int64", 1), "int64")
    before = (two, one, *weighed, one, one, "float64", two, two, two, wide, three, four, *shared)
    after = (two, two, *weighed, one, "float64", *weighed, *weighed, wide, two, two, two, *shared)
    return loaded(
        Function("engine.layer_kernel", "_before", _LAYERS, before),
        Function("engine.layer_kernel", "_after", _LAYERS, after),
    )


@cache
def watching() -> Callable[..., int]:
    """`_watch` of engine/layer_kernel.py."""
    return loaded(Function("engine.layer_kernel", "_watch", _LAYERS, ("int64",) * 3))[0]
