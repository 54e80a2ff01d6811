"""What a step costs beside the model's forward, by part, while 16 sequences decode.

Rows with the model are what counts. In those without, logits of its first steps take the place of the forward from then on:
the same loop with nothing between its steps, for figures that are exact enough to compare.
"""

import queue
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.overheads.parts import Parts, Times
from engine import Engine, EngineConfig, SamplingParams
from engine.model import Model
from tiering.cli.prompts import real_text

SEQUENCES = 16
FORWARD, CHOOSING = "forward", "choosing tokens"
_OWN_TOKENS, _SHARED_TOKENS = 160, 512
_KEPT_STEPS = 8  # whose logits take the forward's place
_TURN = "between the parts"


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    deterministic: bool = False
    shared: bool = False
    sampled: bool = False

    def params(self, max_tokens: int) -> SamplingParams:
        if not self.sampled:
            return SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        return SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=True,
            temperature=0.8,
            top_p=0.95,
            repetition_penalty=1.1,
            seed=1,
        )


CASES = (
    Case(name="default"),
    Case(name="behind a shared prefix", shared=True),
    Case(name="deterministic", deterministic=True),
    Case(name="sampled", sampled=True),
)


@dataclass(frozen=True)
class _Step:
    times: Times
    num_decodes: int
    is_pure: bool


def measure(
    model: Model, case: Case, *, steps: int, threads: int | None, seed: int, with_model: bool
) -> dict[str, Any]:
    """Decode 16 replies of `steps` tokens, and answer the medians over the steps in which all of them did."""
    config = EngineConfig(
        device="cpu",
        kv_dtype="bfloat16",
        device_bytes="512MiB",
        host_bytes="64MiB",
        max_num_seqs=SEQUENCES,
        deterministic=case.deterministic,
        num_threads=threads,
    )
    with Engine(model, config, announce=lambda _: None) as engine:
        taken = _watch(engine, with_model=with_model)
        try:
            _decode(engine, case, steps, seed)
        finally:
            del model.forward, model.batch  # the class's own again
    pure = [step.times for step in taken if step.is_pure and step.num_decodes == SEQUENCES]
    pure = pure[len(pure) // 4 :] if with_model else pure[_KEPT_STEPS:]  # the rest warms up
    return {"case": case.name, "with_model": with_model, "threads": threads, **_figures(pure)}


def _decode(engine: Engine, case: Case, steps: int, seed: int) -> None:
    text = real_text(engine.model, _SHARED_TOKENS + SEQUENCES * _OWN_TOKENS, np.random.default_rng(seed))
    shared, own = text[:_SHARED_TOKENS] if case.shared else text[:0], text[_SHARED_TOKENS:]
    if case.shared:
        engine.warm(shared.tolist())
    prompts = [np.concatenate([shared, each]) for each in own.reshape(SEQUENCES, _OWN_TOKENS)]
    deltas: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handles = engine.submit_all(prompts, case.params(steps), on_delta=deltas.put)
    for handle in handles:
        if (result := handle.result()).error is not None:
            raise RuntimeError(f"a request failed: {result.error}")


def _watch(engine: Engine, *, with_model: bool) -> list[_Step]:
    """Time the parts of the loop's turns from here on."""
    loop, parts = engine._loop, Parts()
    taken: list[_Step] = []
    step: list[Any] = []
    kept: list[torch.Tensor] = []
    forward, build, turn = engine.model.forward, engine.model.batch, loop._turn

    def batch(chunks: Any, *arguments: Any, **named: Any) -> Any:
        step[:] = chunks
        return build(chunks, *arguments, **named)

    def compute(*arguments: Any) -> torch.Tensor:
        if with_model or len(kept) < _KEPT_STEPS:
            logits = forward(*arguments)
            if not with_model and len(step) == SEQUENCES and all(chunk.decode for chunk in step):
                kept.append(logits)
            return logits
        return kept[len(taken) % _KEPT_STEPS]

    def watched(*, block: bool) -> bool:
        parts.take()
        step.clear()
        did = timed_turn(block=block)
        if step:
            decodes = sum(chunk.decode for chunk in step)
            taken.append(_Step(parts.take(), decodes, decodes == len(step)))
        return bool(did)

    timed_turn = parts.timed(turn, _TURN)
    engine.model.batch = parts.timed(batch, "batch")  # type: ignore[method-assign]
    engine.model.forward = parts.timed(compute, FORWARD)  # type: ignore[method-assign]
    for owner, methods, part in (
        (loop, ("_take_messages",), "messages"),
        (loop._cache, ("pump",), "news of the cache"),
        (loop._cache, ("before_compute", "after_compute"), "order of copies"),
        (loop._scheduler, ("late", "admit", "next_step", "warmed"), "scheduling"),
        (loop, ("_choices",), CHOOSING),
        (loop, ("_computed",), "publishing blocks"),
        (loop, ("_accept",), "replies and their text"),
        (loop._answers, ("deliver",), "telling of news"),
    ):
        for method in methods:
            parts.wrap(owner, method, part)
    loop._turn = watched  # type: ignore[method-assign]  # the turn that sleeps now is not looked at
    return taken


def _figures(steps: list[Times]) -> dict[str, Any]:
    """Medians, in us, and the share of a step that is not the forward's."""
    assert steps, "in no step did all sequences decode"
    names = sorted({name for step in steps for name in step} - {FORWARD})

    def column(name: str, at: int) -> np.ndarray[Any, Any]:
        return np.array([step.get(name, [0.0, 0.0])[at] for step in steps]) * 1e6

    own = [sum(column(name, at) for name in names) for at in (0, 1)]
    forward = [column(FORWARD, at) for at in (0, 1)]
    shares = own[0] / (own[0] + forward[0])
    return {
        "steps": len(steps),
        "forward_wall_us": _median(forward[0]),
        "own_wall_us": _median(own[0]),
        "own_cpu_us": _median(own[1]),
        "own_cpu_us_quartiles": [round(float(np.percentile(own[1], q)), 1) for q in (25, 75)],
        "share": round(float(np.median(shares)), 4),
        "share_but_for_choosing": round(
            float(np.median((own[0] - column(CHOOSING, 0)) / (own[0] + forward[0]))), 4
        ),
        "share_quartiles": [round(float(np.percentile(shares, q)), 4) for q in (25, 75)],
        "parts_cpu_us": {name: _median(column(name, 1)) for name in names},
    }


def _median(values: Any) -> float:
    return round(float(np.median(values)), 1)
