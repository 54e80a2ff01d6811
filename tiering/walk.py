"""A look at every node of the index, a part at a time while requests go on: what listings are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiering.errands import Steps
from tiering.holdings import Holdings
from tiering.owners import NOBODY
from tiering.residency import State, Tier

_STEP_NODES: Final = 64
"""In one step: a fifth of a millisecond, or most of one where all of them are long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """Some nodes of the index as they were at one moment. Nobody changes it, any thread may read it.

    An entry for each node, in `held` one a tier and node. Hits, leases and `touched_s`, on the cache's clock and NaN for
    never, are those of the first block, and so is `kept`, whether a user holds it; `private` is that of the last, and so are
    `own_s` and `by_default`, what its term says. `gone` are numbers that name no node.
    """

    numbers: NDArray[np.int64]
    ups: NDArray[np.int64]
    """The number of the node above, NO_NODE for none."""
    edges: list[bytes]
    blocks: NDArray[np.int64]
    held: NDArray[np.int64]
    hits: NDArray[np.int32]
    leases: NDArray[np.int32]
    private: NDArray[np.bool_]
    touched_s: NDArray[np.float64]
    own_s: NDArray[np.float64]
    by_default: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    gone: list[int]


def walk(holdings: Holdings) -> Steps[list[Nodes]]:
    """All nodes, by number. Of a number that comes again the last counts: its node has changed since it was first seen.

    What leads from node to node is as of the end; counts are of the moment at which each node was seen.
    """
    radix = holdings.radix
    parts = []
    while radix.watch.on:
        yield lambda: not radix.watch.on
    radix.watch.begin()
    try:
        start = 0
        while start < radix.num_numbers:
            stop = min(start + _STEP_NODES, radix.num_numbers)
            parts.append(_look(holdings, range(start, stop)))
            start = stop
            yield None
        while changed := sorted(radix.watch.take()):
            for start in range(0, len(changed), _STEP_NODES):
                if start:
                    yield None
                parts.append(_look(holdings, changed[start : start + _STEP_NODES]))
        return parts
    finally:
        radix.watch.end()


def _look(holdings: Holdings, numbers: Sequence[int]) -> Nodes:
    residency = holdings.residency
    found = holdings.radix.nodes(numbers)
    ids, blocks = found.ids, found.counts
    ends = np.cumsum(blocks)
    starts = ends - blocks
    first, last = ids[starts], ids[ends - 1]
    present = residency.state.take(ids, axis=1) == int(State.PRESENT)
    held = (
        np.add.reduceat(present, starts, axis=1, dtype=np.int64)
        if len(ids)
        else np.zeros((len(Tier), 0), np.int64)
    )
    return Nodes(
        numbers=np.array(found.numbers, dtype=np.int64),
        ups=np.array(found.ups, dtype=np.int64),
        edges=found.edges,
        blocks=blocks,
        held=held,
        hits=residency.hits[first],
        leases=residency.leases[first],
        private=residency.owner[last] != NOBODY,
        touched_s=holdings.order.touched_s(first),
        own_s=holdings.terms.own_s(last),
        by_default=holdings.terms.by_default(last),
        kept=holdings.holds.are_held(first),
        gone=sorted({*numbers}.difference(found.numbers)) if len(found.numbers) < len(numbers) else [],
    )
