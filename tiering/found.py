"""What a store holds, brought into the order in which the index can take it up. Pure; any thread may call it."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvstore.block import KEY_BYTES, BlockKey
from kvstore.metas import BlockMetas
from kvstore.store import OWNER_BYTES

Numbers = NDArray[np.int64]

MOST_RUN_BLOCKS: Final = 128
"""In one run: what follows is a run of its own. Bounds what is taken up in one step."""
_SAME_AGE_NS: Final = 1_000_000  # what a float loses of a time since 1970 is less


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """Blocks that reach back to the root, in runs: most recently used first, and each after the one that it follows.

    A run is blocks of one owner that follow each other without a branch and were last used together::

        run 0   a b c d        after -1   use 2      runs  0  1  2 ...
        run 1         `- e f   after 0    use 2      blocks  a b c d | e f | g h | ...
        run 2         `- g h   after 0    use 1      starts  0         4     6

    A use is one of a path down to a block. Of a block, those of what follows it are uses too.
    """

    starts: Numbers
    """[runs + 1]: the number of each run's first block, and that of all blocks."""
    after: Numbers
    """[runs]: the run whose last block each follows; -1 for none."""
    alone: NDArray[np.bool_]
    """[runs]: whether no other run follows the same block."""
    uses: Numbers
    """[runs]: the number of each run's last use, 0 for the oldest of all."""
    ages_s: NDArray[np.float64]
    """[uses]: how long ago each was; falling."""
    keys: NDArray[np.uint8]
    """[blocks, KEY_BYTES]"""
    tokens: NDArray[np.uint8]
    """[blocks, bytes of a block's token ids]"""
    stored_bytes: Numbers
    told: NDArray[np.bool_]
    """[blocks]: whether the store knows of the last use."""
    owners: NDArray[np.int32]
    """[blocks]: the place of each block's owner in `owner_table`."""
    owner_table: list[bytes]
    others: NDArray[np.uint8]
    """[others, KEY_BYTES]: the keys of blocks that do not reach back to the root."""

    def __len__(self) -> int:
        return len(self.stored_bytes)

    @property
    def num_runs(self) -> int:
        return len(self.after)


def arranged(pages: Iterable[BlockMetas], root_key: BlockKey, now_ns: int) -> Found:
    """All blocks of a scan. `now_ns`: on the clock of their times.

    What is used later than that, as after a clock was set back, cannot be: it was used now, and the store is to be told
    so; so it is of uses that only what follows a block tells. Some 2 microseconds a block.
    """
    metas = _each_once(BlockMetas.joined(pages))
    parents = _parents(metas, root_key)
    depths = _depths(parents)
    there = depths > 0
    others = metas.keys[~there]
    if len(others):
        numbers = np.cumsum(there) - 1
        metas, depths, parents = _those(metas, there), depths[there], parents[there]
        parents = np.where(parents < 0, -1, numbers[parents])
    used_ns = np.minimum(metas.used_ns, now_ns)
    by_use = np.lexsort((depths, used_ns))  # of one time the deepest is the last: its path was used then
    stamps = _of_the_subtree(_inverse(by_use), parents, depths)
    last_ns = used_ns[by_use][stamps]
    told = (metas.used_ns <= now_ns) & (last_ns - metas.used_ns < _SAME_AGE_NS)
    # blocks with one stamp lie on one path
    order = np.argsort(-stamps * (depths.max(initial=0) + 1) + depths)
    parents = np.append(_inverse(order), -1)[parents[order]]
    stamps = stamps[order]
    owner_table, owners = _table(metas.owners.take(order, axis=0))
    starts = _run_starts(parents, stamps, owners)
    run_of = np.cumsum(np.bincount(starts, minlength=len(stamps))) - 1
    is_older = np.diff(stamps[starts], prepend=-1) != 0
    uses = is_older.sum() - np.cumsum(is_older)
    after = np.append(run_of, -1)[parents[starts]]
    return Found(
        starts=np.append(starts, len(stamps)),
        after=after,
        alone=np.bincount(after + 1, minlength=1)[after + 1] == 1,
        uses=uses,
        ages_s=(now_ns - last_ns[order][starts[is_older]][::-1]) / 1e9,
        keys=metas.keys.take(order, axis=0),  # of rows, much faster than by an index
        tokens=metas.tokens.take(order, axis=0),
        stored_bytes=metas.stored_bytes[order],
        told=told[order],
        owners=owners,
        owner_table=owner_table,
        others=others,
    )


def _those(metas: BlockMetas, which: NDArray[np.bool_]) -> BlockMetas:
    return BlockMetas(**{field.name: getattr(metas, field.name)[which] for field in fields(metas)})


def _inverse(order: NDArray[np.intp]) -> Numbers:
    inverse = np.empty(len(order), dtype=np.int64)
    inverse[order] = np.arange(len(order))
    return inverse


def _words(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """[n, 4]: keys as numbers, to compare them whole."""
    return np.ascontiguousarray(keys).view(np.uint64)


def _firsts(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """How each key begins, in the order of keys: that in which many a store tells of them."""
    return np.ascontiguousarray(keys[:, :8]).view(">u8").ravel().astype(np.uint64)


def _each_once(metas: BlockMetas) -> BlockMetas:
    """Without blocks that were told of before."""
    firsts = _firsts(metas.keys)
    order = np.argsort(firsts, kind="stable")
    likely = 1 + np.flatnonzero(firsts[order[1:]] == firsts[order[:-1]])
    again = order[likely[(metas.keys[order[likely]] == metas.keys[order[likely - 1]]).all(axis=1)]]
    if not len(again):
        return metas
    kept = np.ones(len(metas), dtype=np.bool_)
    kept[again] = False
    return _those(metas, kept)


def _parents(metas: BlockMetas, root_key: BlockKey) -> Numbers:
    """The number of each block's parent; -1 for a first block, and -2 where the parent is not there. Keys are compared whole."""
    words, wanted = _words(metas.keys), _words(metas.parent_keys)
    firsts, asked = _firsts(metas.keys), _firsts(metas.parent_keys)
    order = np.argsort(firsts, kind="stable")
    firsts = firsts[order]
    parents = np.full(len(metas), -2, dtype=np.int64)
    asking = np.argsort(asked)  # in order, or each search would go all over memory
    at = np.searchsorted(firsts, asked[asking])
    while len(asking):
        there = at < len(firsts)
        asking, at = asking[there], at[there]
        there = firsts[at] == asked[asking]
        asking, at = asking[there], at[there]
        same = (words.take(order[at], axis=0) == wanted.take(asking, axis=0)).all(axis=1)
        parents[asking[same]] = order[at[same]]
        asking, at = asking[~same], at[~same] + 1  # another key that begins likewise
    parents[
        (wanted == _words(np.frombuffer(root_key, dtype=np.uint8).reshape(1, KEY_BYTES))).all(axis=1)
    ] = -1
    return parents


def _depths(parents: Numbers) -> Numbers:
    """How many blocks the path down to each has; 0 where it does not begin at the root. By doubling what is known of it."""
    num = len(parents)
    # two places more, which stand for the root and for nowhere
    up = np.append(np.where(parents == -1, num, np.where(parents == -2, num + 1, parents)), [num, num + 1])
    hops = np.append(np.ones(num, dtype=np.int64), [0, 0])
    for _ in range(num.bit_length() + 1):
        if (up[:num] >= num).all():
            break
        hops += hops[up]
        up = up[up]
    return np.where(up[:num] == num, hops[:num], 0)


def _of_the_subtree(ranks: Numbers, parents: Numbers, depths: Numbers) -> Numbers:
    """The highest rank of each block and all that follow it."""
    highest = ranks.copy()
    levels = np.argsort(-depths, kind="stable")
    ends = np.cumsum(np.bincount(depths)[::-1])
    start = 0
    for end in ends.tolist():
        level = levels[start:end]
        level = level[parents[level] >= 0]
        np.maximum.at(highest, parents[level], highest[level])
        start = end
    return highest


def _run_starts(parents: Numbers, stamps: Numbers, owners: NDArray[np.int32]) -> Numbers:
    """The numbers of blocks that begin a run, where each stamp's blocks are in the order of their path."""
    num = len(parents)
    num_children = np.bincount(parents[parents >= 0], minlength=num)
    begins = np.ones(num, dtype=np.bool_)
    begins[1:] = (stamps[1:] != stamps[:-1]) | (num_children[:-1] > 1) | (owners[1:] != owners[:-1])
    numbers = np.arange(num)
    begins |= (numbers - np.maximum.accumulate(np.where(begins, numbers, 0))) % MOST_RUN_BLOCKS == 0
    return np.flatnonzero(begins)


def _table(owners: NDArray[np.uint8]) -> tuple[list[bytes], NDArray[np.int32]]:
    """The owners that there are, and the place of each block's among them."""
    if len(owners) and (owners == owners[0]).all():
        return [owners[0].tobytes()], np.zeros(len(owners), dtype=np.int32)
    rows = np.ascontiguousarray(owners).view(f"V{OWNER_BYTES}").ravel().tolist()
    table = sorted(set(rows))
    places = {owner: place for place, owner in enumerate(table)}
    return table, np.array([places[owner] for owner in rows], dtype=np.int32)
