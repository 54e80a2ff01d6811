"""`kvtide bench ttft`: time to first token with the prefix in each tier.

For each row the cache's own demotion brings the prefix to the row's tier, where for `cold` all tiers are emptied, and then the
prefix with a suffix that was never seen is timed. Of the files of `disk` and `restart` the page cache has all; before
`disk_dropped` it is made to forget them. Repeats are interleaved over the rows of a length, each next to transformers' own
forward with the same suffix, so that a machine that is busy for a while does not favour one. Cold prompts, which take longest, may
be fewer. The `restart` rows come last, and are judged by transformers' hits in the same processes, over the caches that they have
filled before: one process fills a directory with the prefixes of all lengths, and for each repeat a new one finds them there.
"""

import dataclasses
import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from engine.engine import Engine
from tiering.cli.dropped import can_drop
from tiering.cli.environment import environment
from tiering.cli.markdown import write
from tiering.cli.reference import Reference, keep
from tiering.cli.ttft_phases import PHASES, Clocks
from tiering.cli.ttft_restart import after_restarts, prefix_file
from tiering.cli.ttft_rows import Row, gates, page, show
from tiering.cli.ttft_setup import Tokens, TtftBench, ask, bring, first_use, prompts, settings, suffix


def run(bench: TtftBench, json_path: Path | None) -> None:
    """Measure, print tables, and write the rows and a page about them."""
    console = Console(stderr=True)
    rows = list(measure(bench, lambda text: console.print(text, style="dim")))
    engines = [row.pop("engine") for row in rows]
    # the others' differ in where the disk tier is
    config = {**dataclasses.asdict(bench), "engine": engines[0]}
    measured = {
        "gates": gates(rows, bench.suffix_tokens),
        "rows": rows,
        "phases": PHASES,
        "config": config,
        "environment": environment(),
    }
    show(measured)
    write(json_path, measured, page(measured))
    if json_path is not None:
        console.print(f"rows written to {json_path}")


def measure(bench: TtftBench, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows, each as soon as its repeats are over; `tell` hears what is being done."""
    with tempfile.TemporaryDirectory(prefix="kvtide-bench-") as scratch:
        if "disk_dropped" in bench.tiers and not can_drop(scratch):
            tell(f"no disk_dropped rows: files in {scratch} are in memory alone; TMPDIR names another place")
            others = tuple(tier for tier in bench.tiers if tier != "disk_dropped")
            bench = dataclasses.replace(bench, tiers=others)
        yield from _in_this_process(bench, scratch, tell)
        if "restart" in bench.tiers:
            _give_memory_back()
            yield from after_restarts(bench, scratch, tell)


def _give_memory_back() -> None:
    """Of a GPU: torch keeps what the model and the pool took, and other processes are to have it. Nothing on a CPU."""
    gc.collect()
    torch.cuda.empty_cache()


def _in_this_process(bench: TtftBench, scratch: str, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    if bench.tiers == ("restart",):
        return
    model = bench.load()
    prefixes = prompts(bench, model)
    config = bench.engine_config(
        model, f"{scratch}/kv" if {"disk", "disk_dropped"} & {*bench.tiers} else None
    )
    reference = Reference(bench.load().hf) if bench.reference else None
    with Engine(model, config, announce=tell) as engine:
        first_use(engine, bench)
        made_with = settings(engine)
        for number, num_tokens, repeats in bench.lengths:
            bring(engine, "cold", prefixes[number])  # other prefixes would make way while rows are timed
            length = _Length(bench, engine, reference, prefixes[number], tell)
            for repeat in range(repeats):
                tell(f"{num_tokens} tokens, repeat {repeat + 1} of {repeats}")
                length.repeat(repeat)
            if reference is not None and "restart" in bench.tiers:
                keep(length.prefix_cache(reference), prefix_file(scratch, number))
            if bench.phases and model.device.type == "cpu":
                tell(f"{num_tokens} tokens, with clocks")
                length.with_clocks(range(repeats, repeats + bench.phases))
            yield from ({**row.as_dict(), "engine": made_with} for row in length.rows)


class _Length:
    """The rows of one prefix."""

    def __init__(
        self,
        bench: TtftBench,
        engine: Engine,
        reference: Reference | None,
        prefix: Tokens,
        tell: Callable[[str], None],
    ) -> None:
        self._bench, self._engine, self._reference = bench, engine, reference
        self._prefix, self._tell = prefix, tell
        self._prefix_cache: Any = None
        names = [name for name in ("reference_cold", "reference_hit") if reference is not None]
        self._rows = {name: Row(name, len(prefix)) for name in (*names, *bench.tiers) if name != "restart"}

    @property
    def rows(self) -> list[Row]:
        """Those that were measured."""
        return [row for row in self._rows.values() if row.ttft_s]

    def repeat(self, repeat: int) -> None:
        """Every row once, save that of a restart."""
        for tier in self._bench.tiers:
            if tier == "restart" or (tier == "cold" and repeat >= self._bench.cold_repeats):
                continue
            behind = suffix(self._bench, self._engine.model, repeat, tier)
            if self._reference is not None:
                self._refer(self._reference, tier, behind)
            self._tell(f"  {tier}")
            bring(self._engine, tier, self._prefix)
            self._rows[tier].add(*ask(self._engine, self._prefix, behind, self._bench.new_tokens))

    def _refer(self, reference: Reference, tier: str, behind: Tokens) -> None:
        new_tokens = self._bench.new_tokens
        if tier == "cold":
            self._tell("  transformers, cold")
            prompt = np.concatenate([self._prefix, behind])
            outcome, self._prefix_cache = reference.cold(prompt, new_tokens, len(self._prefix))
            self._rows["reference_cold"].add(*outcome)
            return
        cache = self.prefix_cache(reference)
        self._rows["reference_hit"].add(*reference.hit(cache, behind, new_tokens))

    def prefix_cache(self, reference: Reference) -> Any:
        """Transformers' own, made when it is first needed."""
        if self._prefix_cache is None:
            self._tell("  transformers, the prefix")
            self._prefix_cache = reference.prefill(self._prefix)
        return self._prefix_cache

    def with_clocks(self, repeats: range) -> None:
        """Every hit once more in each of these repeats, to see where its time goes."""
        with Clocks(self._engine).running() as clocks:
            for repeat in repeats:
                for tier in self._bench.tiers:
                    if tier in ("cold", "restart"):
                        continue
                    behind = suffix(self._bench, self._engine.model, repeat, tier)
                    bring(self._engine, tier, self._prefix)
                    clocks.restart()
                    _, _, result, _ = ask(self._engine, self._prefix, behind, 1)
                    self._rows[tier].phases.append(clocks.phases(result))
