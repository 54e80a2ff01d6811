"""How large the block pool of a CUDA device becomes: a share of what is left after the model and the largest step."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from kvstore.block import BlockLayout

from .config import EngineConfig
from .model import Model
from .out_of_memory import OutOfMemory, lower, memory_for
from .params import SamplingParams
from .pool import DevicePool
from .sampling import ROWS_AT_ONCE, Draw, choose
from .sizes import format_bytes
from .step_size import StepSize

_SLOTS_APART = (
    16  # what decodes that share nothing gather together is bounded (calls.py): a few reach that bound
)
_STEP_SETTINGS = ("max_batch_tokens", "max_num_seqs", "max_model_len")


class MemoryMeter(Protocol):
    """Reads and resets what torch knows of a device's memory; all in bytes."""

    def free_bytes(self) -> int:
        """What can be allocated: free for everybody, or kept by torch and not in use."""

    def allocated_bytes(self) -> int:
        """What tensors take now."""

    def peak_bytes(self) -> int:
        """The most that tensors took together since `reset_peak`."""

    def reset_peak(self) -> None:
        """Let the peak begin at what is allocated now."""

    def empty_cache(self) -> None:
        """Have torch give back what it keeps and does not use: a pool is one allocation, and gaps cannot hold it."""


class CudaMeter:
    """The meter of torch's current CUDA device."""

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def allocated_bytes(self) -> int:
        return torch.cuda.memory_allocated()

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()


def measured_pool_bytes(model: Model, layout: BlockLayout, config: EngineConfig, meter: MemoryMeter) -> int:
    """Bytes of the slots that fit beside the model and the largest step, whole blocks of them.

    Computes that step, on the caller's thread and its current stream. Raises OutOfMemory where no block fits.
    """

    def run(most_tokens: int) -> None:
        run_step(model, layout, largest_step(model, config, most_tokens), deterministic=config.deterministic)

    with memory_for("the largest step beside the model", lower(config, *_STEP_SETTINGS)):
        left, peak = left_beside(run, meter, layout, config.device_memory_fraction)
    if left < layout.block_bytes:
        raise OutOfMemory(
            f"there is no memory for a block pool: beside the model {format_bytes(meter.free_bytes())} are free, and the "
            f"largest step takes {format_bytes(peak)} of that; {lower(config, *_STEP_SETTINGS)}"
        )
    return left // layout.block_bytes * layout.block_bytes


def left_beside(
    run: Callable[[int], None], meter: MemoryMeter, layout: BlockLayout, fraction: float
) -> tuple[int, int]:
    """What a pool may take, and what the step took. `run` is told how many tokens a pool could hold without it."""
    meter.empty_cache()
    most_blocks = max(1, int(fraction * meter.free_bytes()) // layout.block_bytes)
    before = meter.allocated_bytes()
    meter.reset_peak()
    run(most_blocks * layout.block_tokens)
    # What stays allocated after it, as workspaces do, counts twice here. It will be there twice: for this thread and for
    # the engine's own.
    peak = meter.peak_bytes() - before
    meter.empty_cache()
    return max(0, int(fraction * (meter.free_bytes() - peak))), peak


def largest_step(model: Model, config: EngineConfig, most_tokens: int) -> StepSize:
    """The step that takes most memory among those that this configuration may compute.

    most_tokens: as many fit into the pool; no sequence is longer.
    """
    return StepSize(
        prompt_tokens=config.max_batch_tokens,
        context_tokens=min(model.max_len, most_tokens),
        num_seqs=config.max_num_seqs,
    )


def run_step(model: Model, layout: BlockLayout, size: StepSize, *, deterministic: bool) -> None:
    """Compute a step over a pool of its own, and draw as many tokens from its logits as are ever drawn together."""
    draw = Draw(
        SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.1, logprobs=1),
        uniform=0.5,
        known=np.zeros(1, dtype=np.int32),
        num_replied=1,
    )
    with DevicePool(layout, _SLOTS_APART, model.device) as pool:
        logits = model.warm_up(pool, size, deterministic=deterministic)
        choose(logits[[0] * ROWS_AT_ONCE], [draw] * ROWS_AT_ONCE)
