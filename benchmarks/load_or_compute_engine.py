"""`make bench-load-or-compute-engine`: the same as load_or_compute.py, but with a real engine and its clock.

The demo's model behind three engines that differ in `EngineConfig.load`: "always", "never" and "auto". Each has the same prefixes
on disk, and the disk is real, save that every read of it takes so much longer as the row says. The engines are asked in turns, another
one first in each round, each time with a suffix never seen. The one with "auto" has been told nothing: it learns before the rounds that
count, from the shortest prefix. Of one prefix it can be as good as the better of the two others; of several, better than both.
"""

import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

from benchmarks import command
from engine import Engine
from engine.model import Model
from kvstore.layers import Delay, FaultStore
from tiering.cli.environment import environment
from tiering.cli.markdown import table
from tiering.cli.ttft_setup import Tokens, TtftBench, ask, fill, first_use, prompts, suffix

Mode = Literal["always", "never", "auto"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
WORSE: Final = 1.05
LEAST_LOADS: Final = 8
"""After which "auto" goes by what it has seen of a tier ..."""
MOST_ASKED: Final = 60
"""... or after so many requests, whatever has come of them by then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    model: str
    prefix_tokens: tuple[int, ...]
    suffix_tokens: int
    delays_s: tuple[float, ...]
    warm_up: int
    repeats: int
    seed: int

    def bench(self) -> TtftBench:
        lengths = self.prefix_tokens
        return TtftBench(
            model=self.model,
            prefix_tokens=lengths,
            suffix_tokens=self.suffix_tokens,
            tiers=("disk",) * len(lengths),
            repeats=(self.warm_up + self.repeats,) * len(lengths),
            cold_repeats=1,
            threads=None,
            new_tokens=1,
            dtype="auto",
            kv_dtype="auto",
            device="cpu",
            deterministic=False,
            reference=False,
            phases=0,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """A prefix, and what came of asking for it: by mode and round."""

    prefix: Tokens
    ttft_s: dict[str, list[float]]
    loaded: list[float]
    """The part of it that "auto" used."""


def open_engine(stack: ExitStack, bench: TtftBench, model: Model, load: Mode, delay_s: float) -> Engine:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    config = replace(bench.engine_config(model, folder), load=load)
    slow = [Delay(on="read", seconds=delay_s)] if delay_s else []
    return stack.enter_context(
        Engine(model, config, announce=lambda _: None, wrap_store=lambda store: FaultStore(store, slow))
    )


def learn(engine: Engine, bench: TtftBench, model: Model, prefix: Tokens) -> int:
    """Have an engine load from disk until it goes by what that takes. How many requests that took."""
    for number in range(MOST_ASKED):
        disk = engine.stats()["cache"]["load_or_compute"]["curves"]["loads"]["disk"]
        if disk is not None and disk["observations"] >= LEAST_LOADS:
            return number
        engine.demote("disk")
        ask(engine, prefix, suffix(bench, model, 1000 + number, "cold"), 1)
    return MOST_ASKED


def measure_disk(
    settings: Settings, model: Model, delay_s: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one disk: the median of each engine's times to the first token, by prefix; and what "auto" says of itself."""
    bench = settings.bench()
    cells = [Cell(prefix, {mode: [] for mode in MODES}, []) for prefix in prompts(bench, model)]
    with ExitStack() as stack:
        engines = {mode: open_engine(stack, bench, model, mode, delay_s) for mode in MODES}
        for engine in engines.values():
            first_use(engine, bench)
            for cell in cells:
                fill(engine, cell.prefix)
        asked = learn(engines["auto"], bench, model, min((cell.prefix for cell in cells), key=len))
        for number in range(settings.warm_up + settings.repeats):
            for at, cell in enumerate(cells):
                new = suffix(bench, model, number * len(cells) + at, "disk")
                play_round(engines, cell, new, number, counts=number >= settings.warm_up)
        told = {"asked_before": asked, **engines["auto"].stats()["cache"]["load_or_compute"]}
    return [_row(delay_s, cell) for cell in cells], told


def play_round(engines: dict[Mode, Engine], cell: Cell, new: Tokens, number: int, *, counts: bool) -> None:
    """Each engine is asked for the prefix, another one first each time."""
    first = number % len(MODES)
    for mode in (*MODES[first:], *MODES[:first]):
        engines[mode].demote("disk")
        took_s, _, result, _ = ask(engines[mode], cell.prefix, new, 1)
        if not counts:
            continue
        cell.ttft_s[mode].append(took_s)
        if mode == "auto" and result.decision is not None:
            cell.loaded.append(result.decision.num_blocks / result.decision.of_blocks)


def _row(delay_s: float, cell: Cell) -> dict[str, Any]:
    medians = {mode: statistics.median(all_s) for mode, all_s in cell.ttft_s.items()}
    spread = {mode: [min(all_s), max(all_s)] for mode, all_s in cell.ttft_s.items()}
    return {
        "delay_s": delay_s,
        "prefix_tokens": len(cell.prefix),
        **{f"{mode}_s": round(median, 4) for mode, median in medians.items()},
        "by_better": round(medians["auto"] / min(medians["always"], medians["never"]), 3),
        "loaded": round(statistics.mean(cell.loaded), 3) if cell.loaded else 0.0,
        "spread_s": spread,
        "all_s": cell.ttft_s,
    }


def gates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times of engines that ran in turns; and what was decided in the times of the two others, which is less noisy."""
    decided = [
        (row["loaded"] * row["always_s"] + (1 - row["loaded"]) * row["never_s"])
        / min(row["always_s"], row["never_s"])
        for row in rows
    ]
    sums = {mode: sum(row[f"{mode}_s"] for row in rows) for mode in MODES}
    by_better = [row["by_better"] for row in rows]
    better = min(sums["always"], sums["never"])
    held = [
        ("auto by the better of always and never, the worst prefix", max(by_better), WORSE),
        (
            "what auto decided by the better of both, in their own times, the worst prefix",
            max(decided),
            WORSE,
        ),
        (
            "auto by the better of always and never, all disks and prefixes together",
            sums["auto"] / better,
            0.95,
        ),
    ]
    return [
        {"name": name, "value": round(value, 3), "bound": bound, "unit": "x", "holds": value <= bound}
        for name, value, bound in held
    ]


def measure(settings: Settings) -> dict[str, Any]:
    model = settings.bench().load()
    rows, told = [], {}
    for delay_s in settings.delays_s:
        print(f"reads {delay_s:g} s slower ...", file=sys.stderr, flush=True)
        of_disk, told[str(delay_s)] = measure_disk(settings, model, delay_s)
        rows += of_disk
    return {
        "command": " ".join(["python -m benchmarks.load_or_compute_engine", *sys.argv[1:]]),
        "environment": environment(),
        "config": asdict(settings),
        "rows": rows,
        "auto": told,
        "gates": gates(rows),
    }


def report(figures: dict[str, Any]) -> str:
    machine, config = figures["environment"], figures["config"]
    columns = ("delay_s", "prefix_tokens", *(f"{mode}_s" for mode in MODES), "by_better", "loaded")
    told = [
        {
            "delay s": delay_s,
            "asked before": stats["asked_before"],
            **stats["decisions"],
            "probes": stats["probes"],
            "predicted s": round(stats["predicted_s"], 2),
            "took s": round(stats["took_s"], 2),
            "mean error": round(stats["mean_error"], 3),
            "came late": stats["came_late"],
        }
        for delay_s, stats in figures["auto"].items()
    ]
    parts = [
        "# Load or compute, in a real engine",
        (
            f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores: the model {config['model']}, "
            f"medians of {config['repeats']} after {config['warm_up']} for warming up; seconds to the first token of a prefix with "
            f'{config["suffix_tokens"]} tokens behind it, and how much of the prefix "auto" used.'
        ),
        table(figures["rows"], columns),
        table(figures["gates"], ("name", "value", "bound", "unit", "holds")),
        table(told, list(told[0])),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prefixes", default="64,384", help="tokens, comma-separated")
    parser.add_argument("--suffix", type=int, default=64, help="tokens")
    parser.add_argument(
        "--delays", default="0,1.2", help="seconds that each read takes longer, comma-separated"
    )
    parser.add_argument("--warm-up", type=int, default=1, help="rounds")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = Settings(
        model=arguments.model,
        prefix_tokens=tuple(int(each) for each in arguments.prefixes.split(",")),
        suffix_tokens=arguments.suffix,
        delays_s=tuple(float(each) for each in arguments.delays.split(",")),
        warm_up=arguments.warm_up,
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    figures = measure(settings)
    command.publish(arguments.json, figures, report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
