"""`make bench-load-or-compute-engine`: the same as load_or_compute.py, but with a real engine and its clock.

The demo's model behind three engines that differ in `EngineConfig.load`: "always", "never" and "auto". Each has the same prefixes
on disk, and the disk is real, save that every read of it takes so much longer as the row says. They are asked in turns, each
time with a suffix never seen. The one with "auto" has been told nothing: the first rounds are its warm-up, in which all take part.
"""

import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks import command
from engine import Engine
from engine.model import Model
from kvstore.layers import Delay, FaultStore
from tiering.cli.environment import environment
from tiering.cli.markdown import table
from tiering.cli.ttft_setup import TtftBench, ask, fill, first_use, prompts, suffix

MODES = ("always", "never", "auto")
WORSE = 1.05


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
        rounds = self.warm_up + self.repeats
        return TtftBench(
            model=self.model,
            prefix_tokens=self.prefix_tokens,
            suffix_tokens=self.suffix_tokens,
            tiers=("disk",) * len(self.prefix_tokens),
            repeats=(rounds,) * len(self.prefix_tokens),
            threads=None,
            new_tokens=1,
            kv_dtype="auto",
            device="cpu",
            deterministic=False,
            reference=False,
            phases=0,
            seed=self.seed,
        )


def open_engine(stack: ExitStack, bench: TtftBench, model: Model, load: str, delay_s: float) -> Engine:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    config = replace(bench.engine_config(model, folder), load=load)
    slow = [Delay(on="read", seconds=delay_s)] if delay_s else []
    return stack.enter_context(
        Engine(model, config, announce=lambda _: None, wrap_store=lambda store: FaultStore(store, slow))
    )


def measure_disk(
    settings: Settings, model: Model, delay_s: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one disk: the median of each engine's times to the first token, by prefix; and what "auto" says of itself."""
    bench = settings.bench()
    prefixes = prompts(bench, model)
    ttft_s: dict[tuple[int, str], list[float]] = {}
    loaded: dict[int, list[float]] = {len(prefix): [] for prefix in prefixes}
    with ExitStack() as stack:
        engines = {mode: open_engine(stack, bench, model, mode, delay_s) for mode in MODES}
        for engine in engines.values():
            first_use(engine, bench)
            for prefix in prefixes:
                fill(engine, prefix)
        for number in range(settings.warm_up + settings.repeats):
            for place, prefix in enumerate(prefixes):
                for mode, engine in engines.items():
                    engine.demote("disk")
                    new = suffix(bench, model, number * len(prefixes) + place, "disk")
                    took_s, _, result, _ = ask(engine, prefix, new, 1)
                    if number < settings.warm_up:
                        continue
                    ttft_s.setdefault((len(prefix), mode), []).append(took_s)
                    if mode == "auto" and result.decision is not None:
                        loaded[len(prefix)].append(result.decision.num_blocks / result.decision.of_blocks)
        told = engines["auto"].stats()["cache"]["load_or_compute"]
    return [_row(delay_s, num, ttft_s, loaded[num]) for num in loaded], told


def _row(
    delay_s: float, prefix_tokens: int, ttft_s: dict[tuple[int, str], list[float]], loaded: list[float]
) -> dict[str, Any]:
    times = {mode: ttft_s[prefix_tokens, mode] for mode in MODES}
    medians = {mode: statistics.median(all_s) for mode, all_s in times.items()}
    return {
        "delay_s": delay_s,
        "prefix_tokens": prefix_tokens,
        **{f"{mode}_s": round(median, 4) for mode, median in medians.items()},
        "by_better": round(medians["auto"] / min(medians["always"], medians["never"]), 3),
        "loaded": round(statistics.mean(loaded), 3),
        "all_s": times,
    }


def gates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether what was decided was right, by what the other two took: that is less noisy than a third engine's own times.

    And those, over all disks and prefixes: on a mix of them neither always nor never is as good.
    """
    decided = [
        (row["loaded"] * row["always_s"] + (1 - row["loaded"]) * row["never_s"])
        / min(row["always_s"], row["never_s"])
        for row in rows
    ]
    sums = {mode: sum(row[f"{mode}_s"] for row in rows) for mode in MODES}
    held = [
        ("what was decided, by the better of always and never, the worst prefix", max(decided), WORSE),
        ("auto by always, all disks and prefixes", sums["auto"] / sums["always"], 1.0),
        ("auto by never, all disks and prefixes", sums["auto"] / sums["never"], 1.0),
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
            **stats["decisions"],
            "probes": stats["probes"],
            "predicted s": round(stats["predicted_s"], 2),
            "took s": round(stats["took_s"], 2),
            "mean error": round(stats["mean_error"], 3),
        }
        for delay_s, stats in figures["auto"].items()
    ]
    parts = [
        "# Load or compute, in a real engine",
        (
            f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores: the model {config['model']}, "
            f"medians of {config['repeats']} after {config['warm_up']} for warming up; seconds to the first token of a prefix on disk with "
            f'{config["suffix_tokens"]} tokens behind it, and how much of the prefix "auto" loaded.'
        ),
        table(figures["rows"], columns),
        table(figures["gates"], ("name", "value", "bound", "unit", "holds")),
        table(told, list(told[0])),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prefixes", default="128,512", help="tokens, comma-separated")
    parser.add_argument("--suffix", type=int, default=64, help="tokens")
    parser.add_argument(
        "--delays", default="0,3", help="seconds that each read takes longer, comma-separated"
    )
    parser.add_argument("--warm-up", type=int, default=2, help="rounds")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
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
