"""`make bench-overheads`: what kvtide costs beside the model.

* of a step in which 16 replies decode, what is not the model's forward: planning, packing the batch, choosing tokens, text,
  bookkeeping. Of replies that are drawn with top_p and a penalty the gate leaves out the drawing, and the whole is beside it;
* of a block that comes back from host memory or disk, the Python around copy and decoding: without what the store does, and
  with it, where a block is of a kilobyte;
* the processor time of an engine that nobody asks for anything, with its endpoint and without;
* what importing takes.

Gates hold or do not by medians, by the wall for steps and by processor time for the rest. A row without a bound is there to be
known. Exit status 1 if a gate does not hold.
"""

import argparse
import sys
from functools import partial
from typing import Any

from benchmarks import command
from benchmarks.overheads import at_rest, decode, promotions
from engine.model import load_model
from tiering.cli.environment import environment
from tiering.cli.markdown import gate, table

_PROMOTED_FROM = ("host", "disk that answers at once", "disk")

_at_most = partial(gate, at_most=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    imports = [
        {"what": name, **at_rest.start(how, arguments.repeats)} for name, how in at_rest.IMPORTS.items()
    ]
    promoted = [
        promotions.measure(source, num_blocks, arguments.repeats)
        for num_blocks in promotions.SIZES
        for source in _PROMOTED_FROM
    ]
    model = load_model("demo", device="cpu")
    idle = [at_rest.idle(model, arguments.idle_seconds, endpoint=endpoint) for endpoint in (False, True)]
    steps = []
    for with_model, num_steps in ((True, arguments.steps), (False, 4 * arguments.steps)):
        for case in decode.CASES:
            if not (with_model and arguments.no_model):
                step = decode.measure(
                    model,
                    case,
                    steps=num_steps,
                    threads=arguments.threads,
                    seed=arguments.seed,
                    with_model=with_model,
                )
                steps.append(step)
    return {
        "command": " ".join(["python -m benchmarks.overheads", *sys.argv[1:]]),
        "environment": environment(),
        "config": {name: str(value) for name, value in vars(arguments).items()},
        "gates": gates(steps, promoted, idle, imports),
        "steps": steps,
        "promotions": promoted,
        "idle": idle,
        "imports": imports,
    }


def gates(
    steps: list[dict[str, Any]],
    promoted: list[dict[str, Any]],
    idle: list[dict[str, Any]],
    imports: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    [help_s] = [row["cpu_s"] for row in imports if row["what"] == "kvtide --help"]
    return [
        *(each for row in steps if row["with_model"] for each in _of_step(row)),
        *(each for row in promoted for each in _of_promotion(row)),
        *(
            _at_most(
                f"idle engine, {'with' if row['endpoint'] else 'without'} its endpoint",
                row["cpu_ms_a_second"],
                0.1,
                "ms of processor time a second",
            )
            for row in idle
        ),
        _at_most("kvtide --help", help_s, 0.3, "s of processor time"),
    ]


def _of_step(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Drawing from the probabilities of a vocabulary is computing that the request asks for; taking the largest is not."""
    draws = row["case"] == "sampled"
    found = [
        _at_most(
            f"loop's share of a step, {row['case']}", row["share"], None if draws else 0.05, "of the step"
        )
    ]
    if draws:
        name = f"loop's share of a step but for choosing tokens, {row['case']}"
        found.append(_at_most(name, row["share_but_for_choosing"], 0.05, "of the step"))
    return found


def _of_promotion(row: dict[str, Any]) -> list[dict[str, Any]]:
    """With the store there are checksums, trees and decoding as well, which are not Python: no bound."""
    name = f"promotion of {row['blocks']} blocks from {row['from']}"
    if row["from"] != "disk":
        return [_at_most(name, row["us_a_block"], 20.0, "us a block")]
    return [
        _at_most(f"{name}, without the store", row["us_a_block"], 20.0, "us a block"),
        _at_most(
            f"{name}, with the store, blocks of 1 kB", row["us_a_block_with_the_store"], None, "us a block"
        ),
    ]


def report(figures: dict[str, Any]) -> str:
    """For people."""
    machine = figures["environment"]
    steps = [
        {
            "replies": row["case"],
            "forward": "the model's" if row["with_model"] else "left out",
            "forward, ms": round(row["forward_wall_us"] / 1e3, 1),
            "the rest, us": row["own_wall_us"],
            "of that processor time, us": row["own_cpu_us"],
            "share": f"{row['share']:.1%}" if row["with_model"] else "",
            "but for choosing tokens": f"{row['share_but_for_choosing']:.1%}" if row["with_model"] else "",
            "steps": row["steps"],
        }
        for row in figures["steps"]
    ]
    names = sorted({name for row in figures["steps"] for name in row["parts_cpu_us"]})
    parts = [
        {"part, us of processor time": name}
        | {_column(row): row["parts_cpu_us"].get(name, 0.0) for row in figures["steps"]}
        for name in names
    ]
    tables = [figures["gates"], steps, parts, figures["promotions"], figures["idle"], figures["imports"]]
    heads = ["gates", "a step of 16 replies", "its parts", "a block that comes back, us", "idle", "imports"]
    return (
        "\n\n".join(
            [
                "# What kvtide costs beside the model",
                f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores.",
                *(
                    f"## {head}\n\n{table(rows, list(rows[0]))}"
                    for head, rows in zip(heads, tables, strict=True)
                ),
            ]
        )
        + "\n"
    )


def _column(row: dict[str, Any]) -> str:
    return str(row["case"]) + ("" if row["with_model"] else ", forward left out")


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--steps",
        type=int,
        default=48,
        help="tokens of each reply with the model; four times as many without",
    )
    parser.add_argument("--threads", type=int, help="of the model; default: torch's choice")
    parser.add_argument("--repeats", type=int, default=10, help="of promotions and imports")
    parser.add_argument(
        "--idle-seconds", type=float, default=6.0, help="longer than a store takes until it syncs"
    )
    parser.add_argument("--no-model", action="store_true", help="only steps with the forward left out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = measure(arguments)
    command.publish(arguments.json, figures, report(figures))
    return int(any(each["holds"] is False for each in figures["gates"]))


if __name__ == "__main__":
    sys.exit(main())
