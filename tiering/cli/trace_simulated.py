"""The same requests as an engine's runs had, on the virtual clock: once for each run, with what its machine was like."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from tiering.cli.trace_compared import GATED
from tiering.decision import Chooser
from tiering.index_config import IndexConfig
from tiering.replay import Asked, Replay, ReplayConfig, Seen
from tiering.step_costs import MoveCosts, SameSteps, Scatter, Step, StepCosts, StepTimes

_TOLD: Final[Mapping[str, tuple[Callable[[StepCosts, Sequence[Step]], StepTimes], int]]] = {
    "costs": (partial(Scatter, around_s=math.inf), 3),
    GATED: (Scatter, 6),
    "own times": (SameSteps, 1),
}
"""What a replay is told of a run's steps, less to more, and how often it is replayed: where steps are drawn they differ as an
engine's runs do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRun:
    """What became of requests that an engine served, when they came, in seconds from the run's beginning, the steps in which it did,
    what blocks took on disk, in the order in which they were written, and how its core was told to work.
    """

    seen: list[Seen]
    came_s: list[float]
    steps: list[Step]
    stored_bytes: list[int]
    core: IndexConfig


def simulated(
    runs: Sequence[EngineRun],
    asked: Sequence[Asked],
    *,
    costs: StepCosts,
    moves: Mapping[type, MoveCosts],
    max_num_seqs: int,
    max_batch_tokens: int,
    block_bytes: int,
    chooser: Callable[[], Chooser | None],
    clients: int | None,
) -> dict[str, list[list[Seen]]]:
    """What became of the requests in each replay, by what it was told: each run is replayed equally often, with requests that come
    when they came in it.
    """
    seen: dict[str, list[list[Seen]]] = {}
    for (told, (times, repeats)), run in itertools.product(_TOLD.items(), runs):
        config = ReplayConfig(
            index=run.core,
            max_num_seqs=max_num_seqs,
            max_batch_tokens=max_batch_tokens,
            stored_bytes=run.stored_bytes or (1,),
            block_bytes=block_bytes,
            steps=times(costs, run.steps),
            moves=moves,
        )
        came = [replace(each, at_s=at_s) for each, at_s in zip(asked, run.came_s, strict=True)]
        replays = [Replay(config, chooser(), seed=seed) for seed in range(repeats)]
        seen.setdefault(told, []).extend(replay.run(came, clients=clients) for replay in replays)
    return seen
