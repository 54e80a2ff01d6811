"""Block keys of what is listed: they are hashed only for rows that are shown, and lead back to what they name."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import numpy as np

from kvstore.block import TOKEN_ID_BYTES, BlockKey, chain_key
from tiering.runs import Hashed, Runs

_KEPT_KEYS: Final = 8192
_KEPT_EDGES: Final = 32768
_PAUSE_EDGES: Final = 16  # a millisecond of hashing, after which other threads have a turn


class Keys:
    """The keys that were handed out last, and what they name. Any thread may call all of it."""

    def __init__(self, root_key: BlockKey, block_tokens: int) -> None:
        self._root_key = root_key
        self._block_bytes = block_tokens * TOKEN_ID_BYTES
        self._lock = threading.Lock()
        self._paths: OrderedDict[BlockKey, tuple[tuple[bytes, ...], int]] = OrderedDict()
        """The edges that lead to a block, by reference, and the token with which its run begins."""
        self._ends: OrderedDict[tuple[BlockKey, bytes], BlockKey] = OrderedDict()
        """The key at the end of an edge behind a key: an edge is hashed once, also for lists that are made anew."""
        self._searching = threading.Lock()

    def forget(self) -> None:
        """Know of nothing any more."""
        with self._lock:
            self._paths.clear()
            self._ends.clear()

    def of(self, runs: Runs, run: int) -> BlockKey:
        """The key of a run's last block, which leads back to it from now on."""
        edges = tuple(runs.edges(run))
        key = self._root_key
        for edge in edges:
            key = self._end(key, edge)
        with self._lock:
            self._paths[key] = edges, runs.starts.item(run)
            self._paths.move_to_end(key)
            if len(self._paths) > _KEPT_KEYS:
                self._paths.popitem(last=False)
        return key

    def path_of(self, key: BlockKey) -> tuple[bytes, int] | None:
        """The tokens up to the end of the block of this key, and the first of its run, if it was handed out of late."""
        with self._lock:
            found = self._paths.get(key)
        return None if found is None else (b"".join(found[0]), found[1])

    def search(self, runs: Runs, key: BlockKey) -> bytes:
        """The same for any block of the list; KeyError if none is it.

        Hashes all of the list, a second for half a million blocks, when it is first searched.
        """
        # one at a time: nobody is to keep all processors busy with keys that do not exist
        with self._searching:
            if runs.hashed is None:
                runs.hashed = self._hashed(runs)
        words, nodes, ends = runs.hashed
        word = _word(key)
        for at in range(int(np.searchsorted(words, np.uint64(word))), len(words)):
            if words.item(at) != word:
                break
            path = runs.path_to(nodes.item(at))
            path = path[: len(path) - runs.edge_bytes(nodes.item(at)) + ends.item(at)]
            if self._end_of(path) == key:
                return path
        raise KeyError(key.hex())

    def _hashed(self, runs: Runs) -> Hashed:
        words, nodes, places = [], [], []
        above: dict[int, BlockKey] = {}
        for number, (node, up, edge) in enumerate(runs.nodes()):
            if number % _PAUSE_EDGES == 0:
                time.sleep(0)
            for at, found in self._blocks(above.get(up, self._root_key), edge):
                words.append(_word(found))
                nodes.append(node)
                places.append(at)
                above[node] = found
        order = np.argsort(np.array(words, dtype=np.uint64), kind="stable")
        return Hashed(
            np.array(words, dtype=np.uint64)[order],
            np.array(nodes, dtype=np.int64)[order],
            np.array(places, dtype=np.int64)[order],
        )

    def _end_of(self, path: bytes) -> BlockKey:
        key = self._root_key
        for _, key in self._blocks(self._root_key, path):  # noqa: B007 - the last one is wanted
            pass
        return key

    def _end(self, key: BlockKey, edge: bytes) -> BlockKey:
        with self._lock:
            end = self._ends.get((key, edge))
        if end is None:
            end = key
            for _, found in self._blocks(key, edge):
                end = found
            with self._lock:
                self._ends[key, edge] = end
                if len(self._ends) > _KEPT_EDGES:
                    self._ends.popitem(last=False)
        return end

    def _blocks(self, key: BlockKey, edge: bytes) -> Iterator[tuple[int, BlockKey]]:
        """Where each block of an edge ends, and its key."""
        for at in range(0, len(edge), self._block_bytes):
            key = chain_key(key, edge[at : at + self._block_bytes])
            yield at + self._block_bytes, key


def _word(key: BlockKey) -> int:
    """The part of a key that it is looked up by."""
    return int.from_bytes(key[:8], "little")
