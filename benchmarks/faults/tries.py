"""One try of a kind: a directory as it was left in order, something that goes wrong, and what is served then."""

import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.faults.kinds import Kind
from kvstore.baseline import Baselines
from kvstore.block import BlockLayout, Namespace
from kvstore.disk import LmdbStore
from kvstore.errors import StoreError
from kvstore.layers import Gate
from kvstore.store import BlockRef, Store
from kvstore.testing import Block, chain, fill, kv_like, read

if TYPE_CHECKING:
    from engine import Result
    from engine.engine import Engine


@dataclass
class Outcome:
    """What became of a try. A request at the level of a store is a call, which may end in a StoreError."""

    requests: int = 0
    served_wrong: int = 0
    requests_failed: int = 0
    hits: int = 0
    """Blocks that were served, at the level of the engine tokens."""
    complaint: str = ""


MASTER_KEY = bytes(range(32))
_LEARN_TOKENS = 32
"""Few enough that the records of a directory as it is left have a baseline."""


def open_store(
    directory: Path,
    *,
    capacity_bytes: int = 1 << 22,
    sync_interval_s: float = 5.0,
    encrypted: bool = False,
) -> LmdbStore:
    """A store of small blocks, but so large that they are coded as an engine's are."""
    layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=32, block_tokens=16, dtype="bfloat16")
    return LmdbStore(
        directory,
        namespace=Namespace.of({"model": "faults"}),
        layout=layout,
        capacity_bytes=capacity_bytes,
        min_free_bytes=0,
        sync_interval_s=sync_interval_s,
        master_key=MASTER_KEY if encrypted else None,
        learn_tokens=(_LEARN_TOKENS,),
    )


class StoreTries:
    """Tries on a store without an engine: reads, writes that mend, reads, and a restart with no fault."""

    name = "store"
    num_blocks = 12

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        for encrypted in (False, True):
            with open_store(_template(scratch, encrypted=encrypted), encrypted=encrypted) as store:
                fill(store, self.num_blocks)
                store.sync()
                # with what was learned from the first time
                self._refs, self._blocks = fill(store, self.num_blocks)
                self._more = chain(store, 4, seed=1), kv_like(store, 4, seed=1)

    def run(self, kind: Kind, seed: int) -> Outcome:
        """One try."""
        rng, gate, outcome = random.Random(f"{kind.name} {seed}"), Gate(), Outcome()
        with _copy(self._scratch, kind) as directory:
            kind.at_rest(directory, rng)
            with open_store(directory) if kind.held else nullcontext():
                self._serve(kind, directory, gate, rng, outcome)
            if directory.is_dir():  # nothing is wrong any more, but what has been damaged
                with self._guard(outcome), open_store(directory, encrypted=kind.encrypted) as store:
                    self._read(store, self._refs, self._blocks, outcome)
                    store.put_many(self._refs, self._blocks)
                    store.check()
                    assert self._read(store, self._refs, self._blocks, outcome) == self.num_blocks
        return outcome

    def _serve(self, kind: Kind, directory: Path, gate: Gate, rng: random.Random, outcome: Outcome) -> None:
        with suppress(StoreError), self._guard(outcome):
            store = open_store(directory, encrypted=kind.encrypted)
            kind.in_use(store, directory, rng)
            opener = threading.Timer(0.01, gate.open)  # hangs are stalls here: nobody gives up a call
            opener.start()
            with kind.wrap(store, gate, rng) as layered:
                for refs, blocks in ((self._refs, self._blocks), self._more, (self._refs, self._blocks)):
                    self._read(layered, refs, blocks, outcome)
                    with suppress(StoreError), self._guard(outcome):
                        layered.put_many(refs, blocks)
                    self._read(layered, refs, blocks, outcome)
                    with suppress(StoreError), self._guard(outcome):
                        layered.delete_many([ref.key for ref in refs[-2:]])
                    with suppress(StoreError), self._guard(outcome):
                        layered.sync()
            opener.join()

    def _read(self, store: Store, refs: list[BlockRef], blocks: list[Block], outcome: Outcome) -> int:
        """Read in batches of three. How many hits."""
        hits = 0
        for start in range(0, len(refs), 3):
            with suppress(StoreError), self._guard(outcome):
                outcomes, out = read(store, refs[start : start + 3])
                for found, got, right in zip(outcomes, out, blocks[start : start + 3], strict=True):
                    hits += found.hit
                    outcome.served_wrong += found.hit and not np.array_equal(got, right)
        outcome.hits += hits
        return hits

    @contextmanager
    def _guard(self, outcome: Outcome) -> Iterator[None]:
        """Count a call, and one that ends in anything but an answer or a StoreError as failed."""
        outcome.requests += 1
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - what it is goes into the report
            outcome.requests_failed += 1
            outcome.complaint = repr(error)


class EngineTries:
    """Tries through an engine whose tiers are small: prompts that the directory holds, twice, and their tokens.

    The engine is deterministic, so that right tokens and their log-probabilities are the same bits from every tier.
    """

    name = "engine"
    block_tokens = 16
    num_prompts = 3

    def __init__(self, scratch: Path) -> None:
        from transformers import LlamaConfig

        from engine import SamplingParams
        from engine.model import random_model

        self._scratch = scratch
        self._model = random_model(
            LlamaConfig(
                vocab_size=512,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.3,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        rng = random.Random(0)
        shared = [rng.randrange(512) for _ in range(3 * self.block_tokens)]
        self._prompts = [
            shared + [rng.randrange(512) for _ in range(2 * self.block_tokens + 5)]
            for _ in range(self.num_prompts)
        ]
        self._params = SamplingParams(max_tokens=3, ignore_eos=True, logprobs=1)
        self._key_file = scratch / "key"
        self._key_file.write_bytes(MASTER_KEY)
        for encrypted in (False, True):
            directory = _template(scratch, encrypted=encrypted)
            with self._open(directory, _learning_soon, encrypted=encrypted, deadline_s=10.0) as engine:
                self._right = [self._said(result) for result in engine.generate(self._prompts, self._params)]
                engine.flush()
                assert engine.clear()
                assert [
                    self._said(result) for result in engine.generate(self._prompts, self._params)
                ] == self._right
                engine.flush()
                assert engine.stats()["cache"]["store"]["written"]["baseline"]

    def run(self, kind: Kind, seed: int) -> Outcome:
        """One try."""
        rng, gate, outcome = random.Random(f"{kind.name} {seed}"), Gate(), Outcome()
        with _copy(self._scratch, kind) as directory:
            kind.at_rest(directory, rng)

            def wrap(store: Store) -> Store:
                assert isinstance(store, LmdbStore)
                kind.in_use(store, directory, rng)
                return kind.wrap(store, gate, rng)

            with open_store(directory) if kind.held else nullcontext():
                self._serve(kind, directory, wrap, gate, outcome)
            if directory.is_dir():  # nothing is wrong any more, but what has been damaged
                self._serve(kind, directory, lambda store: store, gate, outcome)
        return outcome

    def _serve(
        self, kind: Kind, directory: Path, wrap: Callable[[Store], Store], gate: Gate, outcome: Outcome
    ) -> None:
        try:
            with self._open(directory, wrap, encrypted=kind.encrypted) as engine:
                for prompt, right in [*zip(self._prompts, self._right, strict=True)] * 2:
                    self._ask(engine, prompt, right, outcome)
                gate.open()
                engine.demote("disk")  # and once more from there
                gate.shut()
                for prompt, right in zip(self._prompts, self._right, strict=True):
                    self._ask(engine, prompt, right, outcome)
                engine.check()
                gate.open()
        except Exception as error:  # noqa: BLE001 - what it is goes into the report
            gate.open()
            outcome.requests_failed += 1
            outcome.complaint = repr(error)

    def _ask(self, engine: "Engine", prompt: list[int], right: object, outcome: Outcome) -> None:
        result = engine.submit(prompt, self._params).result(60)
        outcome.requests += 1
        outcome.hits += result.usage.cached_by_tier["disk"]
        if result.finish_reason == "error":
            outcome.requests_failed += 1
            outcome.complaint = str(result.error)
        elif self._said(result) != right:
            outcome.served_wrong += 1

    @staticmethod
    def _said(result: "Result") -> object:
        return result.token_ids, [each.logprob for each in result.logprobs or ()]

    def _open(
        self,
        directory: Path,
        wrap: Callable[[Store], Store],
        *,
        encrypted: bool = False,
        deadline_s: float = 0.05,
    ) -> "Engine":
        from engine import EngineConfig
        from engine.engine import Engine

        config = EngineConfig(
            kv_dtype="float32",
            block_tokens=self.block_tokens,
            device_bytes="96KiB",
            host_bytes="64KiB",
            disk_path=directory,
            disk_bytes="4MiB",
            disk_key_file=self._key_file if encrypted else None,
            disk_min_free_bytes=0,
            disk_deadline_s=deadline_s,
            load="always",
            max_batch_tokens=128,
            deterministic=True,
        )
        return Engine(self._model, config, wrap_store=wrap, announce=lambda _: None)


def _learning_soon(store: Store) -> Store:
    assert isinstance(store, LmdbStore)
    store._format.baselines = Baselines(store.layout, (_LEARN_TOKENS,))
    return store


def _template(scratch: Path, *, encrypted: bool) -> Path:
    return scratch / ("encrypted" if encrypted else "plain")


@contextmanager
def _copy(scratch: Path, kind: Kind) -> Iterator[Path]:
    """A directory for one try, as it was left in order."""
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        yield Path(shutil.copytree(_template(scratch, encrypted=kind.encrypted), Path(folder) / "disk"))


LEVELS = {tries.name: tries for tries in (StoreTries, EngineTries)}
