"""`kvtide bench trace`: what the engine finds of a trace the replay finds, and what is said of it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tiering.cli.app import app
from tiering.cli.trace_compared import GATED, compared, gates, quantile
from tiering.cli.trace_costs import Forward, processor_share, step_costs, steps_of
from tiering.cli.trace_prompts import Prompts
from tiering.replay import Seen
from tiering.step_costs import Part, StepCosts, terms
from tiering.trace import TraceWriter

SCALE = 512


def mooncake(path, chains, every_ms=40):
    """Requests whose last block is half full."""
    rows = [
        {
            "timestamp": number * every_ms,
            "input_length": SCALE * len(chain) - SCALE // 2 + number % 7,
            "output_length": 3 + number % 3,
            "hash_ids": chain,
        }
        for number, chain in enumerate(chains)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chains(num: int) -> list[list[int]]:
    """Three conversations that take turns and grow; all of them begin alike."""
    return [[0, *(100 * (n % 3) + part for part in range(1, 4 + n // 3))] for n in range(num)]


def prompts(path, **changed) -> Prompts:
    return Prompts(path, **{"limit": 100, "block_tokens": 16, "vocabulary": 500, "seed": 0, **changed})


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_begin_alike_where_ids_do(tmp_path):
    path = mooncake(tmp_path / "a.jsonl", [[1, 2, 3], [1, 2, 4], [5, 2, 3]])
    one, two, three = prompts(path).made(1000)
    assert len(one) == 2 * 16 + 8
    assert (one[:32] == two[:32]).all()
    assert (one[32:] != two[32:]).any()
    assert (one[:16] != three[:16]).any()
    again = prompts(path).made(20)
    assert all((long[:20] == short).all() for long, short in zip((one, two, three), again, strict=True))
    assert (prompts(path, seed=1).made(1000)[0] != one).any()


def test_of_a_recording_whole_blocks_stay_whole(tmp_path):
    with TraceWriter(tmp_path / "a.jsonl", block_tokens=32) as writer:
        writer.write(0.0, [1, 2], 70, 3)
        writer.write(1.0, [1, 2], 64, 3)
        writer.write(2.0, [], 20, 3)
    assert [len(prompt) for prompt in prompts(tmp_path / "a.jsonl").made(1000)] == [35, 32, 10]


def test_groups_stay_together(tmp_path):
    """Of forty conversations with ten requests each some, whole and in order, though all begin alike."""
    rows = [[0, 1 + n % 40, 1000 + n] for n in range(400)]
    part = prompts(mooncake(tmp_path / "a.jsonl", rows), limit=95)
    assert len(part.requests) == 90
    counts: dict[int, int] = {}
    for request in part.requests:
        counts[request.blocks[1]] = counts.get(request.blocks[1], 0) + 1
    assert set(counts.values()) == {10}
    assert [each.at_s for each in part.requests] == sorted(each.at_s for each in part.requests)


def test_a_part_without_blocks_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"timestamp": 1, "hash_ids": []}\n')
    with pytest.raises(ValueError, match="has no blocks in it"):
        prompts(path)


# --- costs ------------------------------------------------------------------------------------------------------------


def test_costs_are_found_again():
    costs = StepCosts(step_s=0.01, token_s=1e-3, pair_s=1e-7, decode_s=2e-3, context_s=1e-6)
    random = np.random.default_rng(0)
    forwards, now_s = [], 7.0
    for number in range(200):
        parts = [Part(int(random.integers(0, 4000)), 1, decode=True) for _ in range(number % 4)]
        if number % 3 or not parts:
            parts.append(Part(int(random.integers(0, 3000)), int(random.integers(1, 500)), decode=False))
        took_s = costs.seconds(parts)
        # a part of it lies between two steps
        forwards.append(Forward(tuple(parts), now_s, now_s + took_s - 0.001, 0.5 * (took_s - 0.001)))
        now_s += took_s + (1.0 if number % 10 == 0 else 0.0)
    steps = steps_of(forwards, 7.0)
    found = step_costs(steps)
    assert steps[0].began_s == 0.0
    assert terms(steps[0].parts)[0] == 1
    for step in steps:
        assert step.took_s == pytest.approx(costs.seconds(step.parts), rel=0.02)
        assert found.seconds(step.parts) == pytest.approx(costs.seconds(step.parts), rel=0.02)
    assert processor_share(forwards) == pytest.approx(0.5)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_quantiles_are_of_many_values_about_them():
    random = np.random.default_rng(0)
    values = random.exponential(size=2000)
    for part in (0.1, 0.5, 0.9):
        assert quantile(values, part) == pytest.approx(float(np.quantile(values, part)), rel=0.03)
    assert quantile(np.array([3.0]), 0.9) == pytest.approx(3.0)
    assert quantile(np.array([1.0, 2.0]), 0.5) == pytest.approx(1.5)
    near, far = [0.1] * 50 + [0.2] * 50, [0.1] * 51 + [0.2] * 49
    assert abs(quantile(np.array(near), 0.5) - quantile(np.array(far), 0.5)) < 0.01


@pytest.mark.parametrize(
    ("part", "weights"),
    [
        # of beta distributions whose parameters are whole numbers, which are polynomials: 3x^2 - 2x^3
        (0.5, [7 / 27, 13 / 27, 7 / 27]),
        # 6x^2 - 8x^3 + 3x^4
        (0.4, [67 / 256, 109 / 256, 67 / 256, 13 / 256]),
        # x^9
        (0.9, [(at**9 - (at - 1) ** 9) / 9**9 for at in range(1, 10)]),
    ],
)
def test_quantiles_weigh_as_harrell_and_davis_say(part, weights):
    """Each value by what the beta distribution of (n + 1) p and (n + 1) (1 - p) has between (i - 1) / n and i / n."""
    num = len(weights)
    steps = [quantile(np.array([0.0] * at + [1.0] * (num - at)), part) for at in range(num)]
    assert steps == pytest.approx([sum(weights[at:]) for at in range(num)], abs=1e-4)


def test_means_are_compared_and_beside_them_stands_how_far_runs_are_apart():
    def run(found: list[tuple[int, int, float]]):
        return [
            Seen(found={"device": device, "host": host}, ttft_s=ttft_s, queue_s=0.5, load_s=0.0)
            for device, host, ttft_s in found
        ]

    engine = [run([(6, 0, 1.0), (0, 10, 3.0)]), run([(4, 0, 1.0), (0, 10, 4.0)])]
    simulated = [run([(5, 0, 1.5), (0, 8, 3.0)])]
    told = compared(engine, {GATED: simulated, "nothing": [run([(5, 0, 1.5), (0, 8, 7.5)])]}, 100)
    assert told["hit_rate"]["device"] == pytest.approx([0.05, 0.05])
    assert told["hit_rate"]["host"] == pytest.approx([0.10, 0.08])
    assert told["hit_rate"]["all"] == pytest.approx([0.15, 0.13])
    assert told["ttft_s"]["mean"] == pytest.approx([2.25, 2.25])
    assert told["apart"]["hit_rate"]["device"] == pytest.approx([0.02, 0.0])
    assert told["spent_s"]["prefill"] == pytest.approx([1.75, 1.75])
    assert told["if_told"][GATED]["hit_rate"]["host"] == pytest.approx(-0.02)
    assert told["if_told"]["nothing"]["ttft_s"]["mean"] == pytest.approx(1.0)
    assert told["if_told"]["nothing"]["spent_s"] == pytest.approx(
        {"queue": 0.0, "load": 0.0, "prefill": 2.25}
    )
    rows = {row["name"]: (row["value"], row["holds"]) for row in gates("a", told)}
    assert rows[f"told {GATED}, error of a: hit rate, host"] == (2.0, False)
    assert rows[f"told {GATED}, error of a: TTFT, mean"] == (0.0, True)
    assert rows["engine against itself, a: hit rate, device"] == (2.0, None)
    assert rows["engine against itself, a: TTFT, mean"] == (22.22, None)
    assert rows[f"told {GATED}, part of the error of a: mean TTFT, prefill"] == (0.0, None)
    assert rows["told nothing, error of a: TTFT, mean"] == (100.0, None)


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [["--clients", "1"], ["--speed", "2"]], ids=["one client", "as they come"])
def test_the_replay_finds_what_the_engine_found(tmp_path, how):
    """Request by request and tier by tier, with a device that holds less than comes; times are not looked at here."""
    path = mooncake(tmp_path / "a.jsonl", chains(24))
    arguments = ["bench", "trace", str(path), "--model", "random-tiny", "--threads", "1", *how]
    sizes = ["--device-blocks", "24", "--host-blocks", "16", "--disk-blocks", "60", "--max-num-seqs", "2"]
    result = CliRunner().invoke(app, [*arguments, *sizes, "--json", str(tmp_path / "found.json")])
    assert result.exit_code in (0, 1), result.output
    figures = json.loads((tmp_path / "found.json").read_text())
    [run] = figures["runs"]
    assert run["requests"] == 24
    assert sum(sum(each["found"].values()) for each in run["engine"][0]) > 60
    if "--clients" in how:
        same = [a["found"] == b["found"] for a, b in zip(run["engine"][0], run["simulated"], strict=True)]
        assert sum(same) >= 20  # all, unless this machine is held up
    rates = run["hit_rate"]
    assert abs(rates["all"][0] - rates["all"][1]) < 0.05
    gates = {gate["name"]: gate["holds"] for gate in figures["gates"]}
    assert len(gates) == 7 + 3 + 7 + 2 * 3
    errors = run["if_told"]
    assert list(errors) == ["costs", GATED, "own times"]
    assert all(error.keys() == {"hit_rate", "ttft_s", "spent_s"} for error in errors.values())
    assert 0 < run["processor_share"][0] < 1.1
    assert result.exit_code == (1 if False in gates.values() else 0)
    page = (tmp_path / "found.md").read_text()
    assert page.startswith("# The simulator beside the engine")
    assert f"| simulated, told {GATED} |" in page, "whoever reads a figure sees what was known"
    assert page.index("was told of these very runs") < page.index("| trace | figure |")
    assert "| a | hit rate, device |" in result.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--clients", "2", "--speed", "3"], "goes without --speed"),
        (["--engine-load", "sometimes"], "load must be one of"),
        (["--max-new-tokens", "100000"], "--max-new-tokens must be less, got 100000"),
        (["--device-blocks", "2"], "the longest prompt and its reply need 4 blocks, not 2"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, arguments, why):
    path = mooncake(tmp_path / "a.jsonl", chains(3))
    result = CliRunner().invoke(app, ["bench", "trace", str(path), "--model", "random-tiny", *arguments])
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.replace("│", " ").split())
