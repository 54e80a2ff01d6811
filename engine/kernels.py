"""Which attention an engine computes with: FlashInfer where it can be had and agrees with SDPA, else SDPA."""

import importlib.util
import logging

import numpy as np
import torch

from .answers import told
from .attention import attend
from .batch import build_batch
from .chunk import Chunk
from .config import EngineConfig
from .dtypes import dtype_name
from .flashinfer import DTYPES, HEAD_DIMS, FlashInfer, Load, load_wrapper
from .model import Model
from .pool import DevicePool

_log = logging.getLogger(__name__)

TOLERANCE_EPS = 16
"""How far a number may be off, in roundings of the dtype (`eps`) of the root mean square of its row. Both ways take float32
scores of the same numbers, round each weight and each result by at most half of this unit, and a number may be several
times the size of its row. Rightly computed they come to at most 4; a row that sees a token too many or one too few, or a
scale that is ignored, to more than 100 (tests/engine/test_flashinfer.py)."""

NO_CUDA = "it needs a CUDA device"

_SEQUENCES = 6
_LONGEST_TOKENS = 4096  # a window that is longer is tried as one that hides nothing
_NO_WINDOW_TOKENS = 200
_LONGEST_REASON = 300  # compilers say more


class Disagrees(Exception):
    """FlashInfer's results are not SDPA's."""


def choose_kernels(
    model: Model, pool: DevicePool, config: EngineConfig, load: Load | None = None
) -> tuple[FlashInfer | None, str | None]:
    """FlashInfer's kernels, or None for SDPA and why FlashInfer is not used (None where nobody asked for it).

    Call it while nothing is in the pool: it writes to free slots, and leaves zeros. One warning where FlashInfer is
    there and fails, or computes something else than SDPA does. load: gives its class in place of importing it, and makes
    any device do. Raises ValueError where config.attention is "flashinfer" and it cannot be had.
    """
    if config.attention == "sdpa":
        return None, None
    reason = _unsuited(model, pool, config, is_given=load is not None)
    if reason is None:
        try:
            return _tried(model, pool, load or load_wrapper), None
        except Exception as error:  # noqa: BLE001 - what fails in others' code, a compiler's among it, has no common type
            reason = (str(error) if isinstance(error, Disagrees) else told(error))[:_LONGEST_REASON]
            if config.attention == "auto":
                _log.warning(
                    "attention is computed by SDPA, not by FlashInfer: %s", reason, extra={"error": reason}
                )
    if config.attention == "flashinfer":
        raise ValueError(f"attention is 'flashinfer', which cannot be used: {reason}")
    return None, reason


def _unsuited(model: Model, pool: DevicePool, config: EngineConfig, *, is_given: bool) -> str | None:
    """Why FlashInfer is not even tried."""
    if config.deterministic:
        return "in deterministic mode SDPA computes, whose bits are known not to depend on the batch"
    if pool.device.type != "cuda" and not is_given:
        return NO_CUDA
    if model.dtype not in DTYPES or pool.dtype != model.dtype:
        dtypes = f"{dtype_name(model.dtype)} with KV in {dtype_name(pool.dtype)}"
        return f"it computes in bfloat16 or float16 with KV in the same, not in {dtypes}"
    if pool.layout.head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        return f"it is used for heads of {known} numbers, not of {pool.layout.head_dim}"
    if not is_given and importlib.util.find_spec("flashinfer") is None:
        return "it is not installed"
    return None


def _tried(model: Model, pool: DevicePool, load: Load) -> FlashInfer:
    num_heads, windows = model.shape.num_heads, model.shape.windows
    kernels = FlashInfer(load(), pool, num_heads=num_heads, dtype=model.dtype, windows=model.windows)
    for window in model.windows:
        last = max(layer for layer, own in enumerate(windows) if own == window)
        check_agreement(kernels, pool, num_heads=num_heads, dtype=model.dtype, window=window, layer=last)
    return kernels


@torch.inference_mode()
def check_agreement(
    kernels: FlashInfer,
    pool: DevicePool,
    *,
    num_heads: int,
    dtype: torch.dtype,
    window: int | None,
    layer: int,
) -> None:
    """Raise Disagrees unless FlashInfer gives what SDPA gives, for random numbers in one layer of the pool.

    One batch has prefills and decodes of lengths around the window, from slots that are scattered. Behind each sequence's
    end there is NaN: what reads beyond it says so. Writes to free slots and zeroes them.
    """
    random = torch.Generator(pool.device).manual_seed(layer)
    chunks = _chunks(pool, window)
    kv = pool.layer_view(layer)
    slots = torch.from_numpy(np.concatenate([chunk.slots for chunk in chunks])).to(pool.device)
    num_rows = sum(len(chunk.tokens) for chunk in chunks)
    shape = (1, num_heads, num_rows, pool.layout.head_dim)
    query = torch.randn(shape, generator=random, device=pool.device).to(dtype)
    scaling = 1.25 * pool.layout.head_dim**-0.5  # what nobody would take who is not told
    try:
        for chunk in chunks:
            _fill(kv, chunk, window, random)
        by_sdpa, by_kernels = (
            attend(
                query,
                kv,
                build_batch(chunks, pool, dtype=dtype, windows=[window], kernels=each),
                window,
                scaling,
            )
            for each in (None, kernels)
        )
        _compare(by_sdpa, by_kernels, window)
    finally:
        kv[slots] = 0


def _chunks(pool: DevicePool, window: int | None) -> list[Chunk]:
    """Prefills, cold and behind a prefix that ends within a block, and decodes, in slots that nobody else has."""
    block_tokens = pool.layout.block_tokens
    most = pool.num_slots // _SEQUENCES * block_tokens
    if most == 0:
        raise ValueError(f"a pool of {pool.num_slots} blocks is too small to try it; it takes {_SEQUENCES}")
    reach = min(window or _NO_WINDOW_TOKENS, _LONGEST_TOKENS)
    runs = [
        (0, 150),
        (max(reach - 75, 1), reach + 61),
        *[(end - 1, end) for end in (reach + 41, reach, 2 * block_tokens, 5)],
    ]
    free = np.random.default_rng(0).permutation(pool.num_slots)
    chunks: list[Chunk] = []
    for number, (start, end) in enumerate(runs):
        end = min(end, most)
        start = min(start, end - 1)
        used = -(-end // block_tokens)
        chunks.append(
            Chunk(
                tokens=np.zeros(end - start, dtype=np.int32),
                start=start,
                slots=free[number::_SEQUENCES][:used].astype(np.intp),
                wants_logits=False,
                decode=number > 1,
            )
        )
    return chunks


def _fill(kv: torch.Tensor, chunk: Chunk, window: int | None, random: torch.Generator) -> None:
    """Random keys and values of a sequence, and NaN behind its end.

    Values where a row begins or ends to see something are louder, so that a row that sees one token too many, or too
    few, of thousands differs by more than rounding.
    """
    block_tokens = kv.shape[2]
    tokens = len(chunk.slots) * block_tokens
    found = torch.randn((2, tokens, *kv.shape[3:]), generator=random, device=kv.device)
    edges = [(chunk.start, chunk.end)]
    if window is not None:
        edges.append((chunk.start - window, chunk.end - window + 1))
    for begin, end in edges:
        found[1, max(begin - 1, 0) : max(end, 0)] *= chunk.end**0.5
    found[:, chunk.end :] = float("nan")
    blocks = found.unflatten(1, (len(chunk.slots), block_tokens)).transpose(0, 1)
    kv[torch.from_numpy(chunk.slots).to(kv.device)] = blocks.to(kv.dtype)


def _compare(expected: torch.Tensor, found: torch.Tensor, window: int | None) -> None:
    """Both [1, R, heads, head_dim]."""
    where = "without a sliding window" if window is None else f"with a sliding window of {window} tokens"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise Disagrees(f"{where} it gives {found.dtype} {tuple(found.shape)}, not what was asked for")
    if not found.isfinite().all():
        raise Disagrees(f"{where} it gives what is no number, or reads beyond a sequence's end")
    size = expected.float().square().mean(-1, keepdim=True).sqrt()
    off = float(((found.float() - expected.float()).abs() / size).max()) / torch.finfo(expected.dtype).eps
    if not off <= TOLERANCE_EPS:
        raise Disagrees(f"{where} it is {off:.1f} roundings away from SDPA; {TOLERANCE_EPS} are tolerated")
