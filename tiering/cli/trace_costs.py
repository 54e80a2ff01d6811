"""What steps and moves of a real engine take, observed while it works: what a replay on the virtual clock is told."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch

from engine.batch import Batch
from engine.chunk import Chunk
from engine.engine import Engine
from engine.model import Model
from engine.pool import DevicePool
from tiering.fitting import fit
from tiering.moves import Demote, Promote, Read, SwapIn, SwapOut, Write
from tiering.step_costs import MoveCosts, Part, Step, StepCosts, terms

_NEXT_WITHIN_S: Final = 0.02
"""A step that begins so soon after another was not waited for: what lies between is the loop's own work."""
_DOUBTS: Final = np.array([1e-5, 0.0, 1e-5, 1e-5, 1e-5])
_SIZES: Final = (8, 64)
_TRIES: Final = 3
_WAYS: Final[tuple[tuple[Literal["host", "disk"], str, str], ...]] = (
    ("host", "demote", "up"),
    ("disk", "write", "both"),
)


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward: what it computed, when it began and ended (perf_counter), and how long its thread had a processor."""

    parts: tuple[Part, ...]
    began_s: float
    ended_s: float
    thread_s: float


class Timed(Model):
    """A model that notes what each of its forwards took; else the one that it is made of."""

    def __init__(self, model: Model) -> None:
        self.__dict__.update(vars(model))
        self.forwards: list[Forward] = []
        self._began_s = self._thread_s = 0.0
        self._parts: tuple[Part, ...] = ()

    def batch(self, chunks: Sequence[Chunk], pool: DevicePool, **settings: Any) -> Batch:
        self._began_s, self._thread_s = time.perf_counter(), time.thread_time()
        self._parts = tuple(Part(chunk.start, len(chunk.tokens), chunk.decode) for chunk in chunks)
        return super().batch(chunks, pool, **settings)

    def forward(
        self, batch: Batch, pool: DevicePool, before_layer: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        logits = super().forward(batch, pool, before_layer)
        thread_s = time.thread_time() - self._thread_s
        self.forwards.append(Forward(self._parts, self._began_s, time.perf_counter(), thread_s))
        return logits


def steps_of(forwards: Sequence[Forward], from_s: float) -> list[Step]:
    """Steps of a run that began then, at least one: each up to when the next begins, where that was not waited for."""
    gaps = [after.began_s - forward.ended_s for forward, after in itertools.pairwise(forwards)]
    short = [gap for gap in gaps if gap < _NEXT_WITHIN_S]
    usual = statistics.median(short) if short else 0.0
    return [
        Step(
            forward.parts,
            forward.began_s - from_s,
            forward.ended_s - forward.began_s + (gap if gap < _NEXT_WITHIN_S else usual),
        )
        for forward, gap in zip(forwards, [*gaps, usual], strict=True)
    ]


def step_costs(steps: Sequence[Step]) -> StepCosts:
    """Fitted to these, at least one."""
    rows = np.stack([terms(step.parts) for step in steps])
    took_s = np.array([step.took_s for step in steps])
    step_s, token_s, pair_s, decode_s, context_s = fit(rows, took_s, np.ones(len(steps)), _DOUBTS).tolist()
    return StepCosts(step_s=step_s, token_s=token_s, pair_s=pair_s, decode_s=decode_s, context_s=context_s)


def processor_share(forwards: Sequence[Forward]) -> float:
    """For what part of the time that forwards took the thread that computes had a processor: what others took of it is missing."""
    return sum(each.thread_s for each in forwards) / sum(each.ended_s - each.began_s for each in forwards)


def move_costs(engine: Engine, num_blocks: int, seed: int) -> dict[type, MoveCosts]:
    """Of an engine that nobody else asks, which is empty afterwards: small prompts and large ones are moved down and back.

    num_blocks: the most that a prompt may have.
    """
    sizes = sorted({min(size, num_blocks) for size in _SIZES})
    random = np.random.default_rng(seed)
    took: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in sizes} for name in ("demote", "write", "up", "both")
    }
    for size in sizes * _TRIES:
        prompt = random.integers(1, engine.model.vocab_size, size * engine.config.block_tokens).tolist()
        engine.warm(prompt)
        for tier, down, back in _WAYS:
            if not _has(engine, tier):
                continue
            began_s = time.perf_counter()
            engine.demote(tier)
            took[down][size].append(time.perf_counter() - began_s)
            took[back][size].append(engine.warm(prompt).timings.load_s)
        engine.clear()
    up = _line(took["up"])
    both = _line(took["both"])
    read = MoveCosts(
        latency_s=max(0.0, both.latency_s - up.latency_s), block_s=max(0.0, both.block_s - up.block_s)
    )
    demote = _line(took["demote"])
    return {Demote: demote, SwapOut: demote, Promote: up, SwapIn: up, Read: read, Write: _line(took["write"])}


def _has(engine: Engine, tier: str) -> bool:
    return bool(engine.core.host_slots if tier == "host" else engine.core.disk_bytes)


def _line(took: dict[int, list[float]]) -> MoveCosts:
    """Through the medians of the smallest and the largest."""
    known = {size: statistics.median(times) for size, times in took.items() if times}
    if not known:
        return MoveCosts()
    small, large = min(known), max(known)
    if small == large:
        return MoveCosts(block_s=known[large] / large)
    block_s = max(0.0, (known[large] - known[small]) / (large - small))
    return MoveCosts(latency_s=max(0.0, known[small] - block_s * small), block_s=block_s)
