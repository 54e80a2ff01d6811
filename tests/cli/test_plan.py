"""`kvtide plan`: what it says is what arithmetic says, what it recommends can be served, and wrong input gets a sentence."""

import json
import re
import subprocess
import sys
from itertools import islice

import pytest
from typer.testing import CliRunner

from engine.config import EngineConfig
from tests.cli.plan_configs import (
    DEEPSEEK_V3,
    DOC,
    FALCON_7B,
    GEMMA_3_27B,
    GPT_2,
    GPT_OSS_120B,
    LLAMA_70B,
    MAMBA,
    ROOT,
)
from tiering.cli.app import app
from tiering.cli.serve_config import serve_config
from tiering.costs import Costs
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import read_trace


@pytest.fixture
def plan(tmp_path):
    """Runs the command for a config.json."""

    def run(facts: object, *options: object, device_memory: str = "80GiB"):
        file = tmp_path / "config.json"
        file.write_text(facts if isinstance(facts, str) else json.dumps(facts))
        given = ["plan", "--config", file, "--device-memory", device_memory, *options]
        return CliRunner().invoke(app, [str(each) for each in given])

    return run


def said(done) -> dict:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# ---- what KV costs ---------------------------------------------------------------------------------------------------


def test_a_llama_of_70_billion_parameters(plan):
    done = plan(LLAMA_70B, "--kv-dtype", "float16")
    assert "327,680 bytes a token" in done.output
    assert "4,000 tokens: 1.22 GiB" in done.output
    found = said(plan(LLAMA_70B, "--kv-dtype", "float16", "--json"))
    assert found["token_bytes"] == 327_680
    assert found["tokens"] == {"4000": 1_310_720_000}
    assert found["model"]["attention"] == "GQA"
    assert found["model"]["served"] is True
    # known to have 70.6e9 parameters, of which a token passes all but the embedding's 2.1e9
    assert found["model"]["token_operations"] == pytest.approx(2 * 68.5e9, rel=0.01)


@pytest.mark.parametrize(
    ("facts", "kind", "token_bytes", "served", "words"),
    [
        (DEEPSEEK_V3, "MLA", 61 * (512 + 64) * 2, False, "one compressed row of 512 + 64 numbers"),
        (
            GPT_OSS_120B,
            "GQA",
            36 * 2 * 8 * 64 * 2,
            False,
            "a sliding window of 128 tokens in 18 of 36 layers",
        ),
        (GEMMA_3_27B, "GQA", 62 * 2 * 16 * 128 * 2, False, "a sliding window of 1024 tokens in 52 of 62"),
        (GPT_2, "MHA", 12 * 2 * 768 * 2, False, "kvtide does not run it"),
        (FALCON_7B, "MQA", 32 * 2 * 64 * 2, False, "has not been tried"),
        ({**LLAMA_70B, "num_kv_shared_layers": 40}, "GQA", 327_680 // 2, True, "use the KV of others"),
        ({**LLAMA_70B, "num_key_value_heads": None}, "MHA", 327_680 * 8, True, "80 layers"),
    ],
    ids=lambda each: each.get("model_type", "") if isinstance(each, dict) else "",
)
def test_kinds_of_attention(plan, facts, kind, token_bytes, served, words):
    found = said(plan(facts, "--json"))
    assert (found["model"]["attention"], found["token_bytes"]) == (kind, token_bytes)
    assert found["model"]["served"] is served
    assert words in plan(facts).output


# ---- what tiers hold, and what loading saves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "tokens"),
    [("80GiB", 262_144), ("80GB", 244_128), (str(80 << 30), 262_144), ("81920MiB", 262_144)],
)
def test_sizes_as_users_write_them(plan, size, tokens):
    found = said(plan(LLAMA_70B, "--json", "--host-memory", size, device_memory=size))
    assert [(each["tier"], each["num_tokens"]) for each in found["tiers"]] == [
        ("device", tokens),
        ("host", tokens),
    ]


def test_the_disk_holds_records_and_what_lmdb_needs_beside_them(plan):
    options = ("--json", "--host-memory", "1GiB", "--disk", "100GiB", "--disk-ratio", 1.5)
    disk = said(plan(LLAMA_70B, *options))["tiers"][2]
    assert disk["num_tokens"] * 327_680 / 1.5 == pytest.approx((100 << 30) * 0.8, rel=0.02)


def test_where_loading_begins_to_pay(plan):
    """By hand: 1,000 tokens a second, and attention's operations by the matrices'; a disk of 325,000 KB a second."""
    options = (
        "--json",
        "--host-memory",
        "1GiB",
        "--disk",
        "1TB",
        "--prefill",
        1000,
        "--disk-load",
        "325MB/s",
    )
    found = said(plan(LLAMA_70B, *options))
    rates, model = found["rates"], found["model"]
    assert rates["prefill"]["token_s"] == 1e-3
    assert "option --prefill" in rates["prefill"]["source"]
    assert rates["disk"]["source"] == "option --disk-load"
    assert rates["host"]["source"].startswith("assumed")
    pair_s = 1e-3 * model["pair_operations"] / model["token_operations"]
    tokens = found["break_even_tokens"]["disk"]

    def saved_s(prefix: int) -> float:
        return 1e-3 * prefix + pair_s * ((prefix + 64) ** 2 / 2 - 64 * (prefix + 32))

    assert saved_s(tokens) >= tokens * 327_680 / 325e6
    assert saved_s(tokens - 16) < (tokens - 16) * 327_680 / 325e6
    assert found["break_even_tokens"]["host"] == 16
    by_tokens = {row["tokens"]: row for row in found["load_or_compute"]}
    assert by_tokens[4000]["seconds"]["compute"] == pytest.approx(saved_s(4000))
    assert by_tokens[4000]["seconds"]["disk"] == pytest.approx(1_310_720_000 / 325e6)
    without_host = said(plan(LLAMA_70B, "--json"))
    assert without_host["break_even_tokens"] == {}
    assert set(without_host["load_or_compute"][0]["seconds"]) == {"compute"}


def test_rates_as_they_were_measured(plan, tmp_path):
    """The shipped measurement of the demo's model; and costs that were learned."""
    measured = ROOT / "benchmarks" / "results" / "ttft_zen4-2core_2026-11-30.json"
    demo = {
        **LLAMA_70B,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    found = said(plan(demo, "--json", "--host-memory", "1GiB", "--disk", "4GiB", "--measured", measured))
    assert found["token_bytes"] == 23_040
    assert {rate["source"] for rate in found["rates"].values()} == {f"measured: {measured}"}
    by_tokens = {row["tokens"]: row["seconds"] for row in found["load_or_compute"]}
    of_all = json.loads(measured.read_text())["rows"]
    rows = {row["tier"]: row for row in of_all if row["prefix_tokens"] == 4096}
    # of 4,160 tokens, and of the 4,096 of them that were cached
    assert by_tokens[4000]["compute"] == pytest.approx(rows["cold"]["ttft_s"] * 4000 / 4160, rel=0.1)
    # a line through three lengths, of which each was measured a few times
    assert by_tokens[4000]["disk"] == pytest.approx(
        rows["disk_dropped"]["timings_s"]["load_s"] * 4000 / 4096, rel=0.25
    )
    costs = Costs()
    costs.prefilled(0, 1000, 2.0)
    costs.loaded("disk", 1 << 30, 4.0)
    kept = tmp_path / "costs.json"
    kept.write_text(json.dumps(costs.as_json()))
    rates = said(plan(demo, "--json", "--measured", kept))["rates"]
    assert rates["prefill"]["token_s"] == pytest.approx(2e-3, rel=0.01)
    assert rates["disk"]["byte_s"] == pytest.approx(4.0 / 2**30, rel=0.01)
    assert rates["host"]["source"].startswith("assumed")


# ---- the recommended configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_what_is_recommended_can_be_served(plan, tmp_path, suffix):
    file = tmp_path / f"kvtide{suffix}"
    options = ("--host-memory", "256GiB", "--disk", "2TB", "--disk-path", '/srv/"kv" Ä', "--write", file)
    done = plan(LLAMA_70B, *options, device_memory="16GiB")
    assert done.exit_code == 0, done.output
    read = serve_config(file, {}, token_file=None, read_token_file=None, environment={})
    assert read.engine == EngineConfig(
        kv_dtype="bfloat16",
        block_tokens=16,
        device_bytes=16 << 30,
        host_bytes=256 << 30,
        disk_path='/srv/"kv" Ä',
        disk_bytes=2 * 10**12,
        max_model_len=52_416,
    )
    before = file.read_text()
    again = plan(LLAMA_70B, "--write", file)
    assert again.exit_code == 2
    assert "is not overwritten" in again.stderr
    assert again.stdout == ""
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--host-memory", "1GiB", "--disk-load", "1MB"), "computing is faster than this disk"),
        (("--host-memory", "40MB"), "must have 8 blocks and has 7"),
        ((), "must have 8 blocks and has 0"),
    ],
)
def test_a_disk_that_does_not_pay_is_left_out(plan, options, reason):
    found = said(plan(LLAMA_70B, "--json", "--disk", "1TB", *options))
    assert "disk_path" not in found["recommended"]["engine"]
    assert reason in found["reasons"]["disk_path"]


# ---- a trace ---------------------------------------------------------------------------------------------------------

SIMULATED = {
    "hit_rate": 0.5,
    "hits_by_tier": {"device": 100, "host": 300, "disk": 600},
    "writes_by_tier": {"host": 900, "disk": 800},
    "num_requests": 100,
    "num_blocks": 2000,
}


def test_a_trace_is_simulated_with_these_tiers(plan, tmp_path):
    """Two prompts of two blocks in turns: a device of one block of 512 tokens keeps nothing to the next, host memory does."""
    trace = tmp_path / "t.jsonl"
    rows = [{"timestamp": n, "hash_ids": [2 * (n % 2), 2 * (n % 2) + 1]} for n in range(20)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = str(512 * 327_680)
    found = said(plan(LLAMA_70B, "--json", "--trace", trace, device_memory=small))["trace"]
    assert found["hit_rate"] == 0.0
    assert (found["num_requests"], found["num_blocks"]) == (20, 40)
    options = ("--json", "--trace", trace, "--trace-block-tokens", 512, "--host-memory", "80GiB")
    found = said(plan(LLAMA_70B, *options, "--price-per-hour", 2, device_memory="80GiB"))["trace"]
    assert found["hit_rate"] == 36 / 40
    assert found["hits_by_tier"] == {"device": 36, "host": 0}
    assert found["money"] > 0


def test_a_real_trace_gives_the_simulators_own_figures(plan, tmp_path):
    """The first requests of agents, through 100 blocks on the device and 200 in host memory."""
    shipped = ROOT / "benchmarks" / "traces" / "lmcache_agents_blk64.jsonl.zst"
    requests = list(islice(read_trace(shipped), 100))
    trace = tmp_path / "t.jsonl"
    rows = [{"timestamp": 1000 * each.at_s, "hash_ids": each.blocks} for each in requests]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = [str(number * 64 * 327_680) for number in (100, 200)]
    options = ("--json", "--trace", trace, "--trace-block-tokens", 64, "--host-memory", sizes[1])
    found = said(plan(LLAMA_70B, *options, device_memory=sizes[0]))["trace"]
    outcome = Simulation(SimulationConfig(device_blocks=100, host_blocks=200)).run(requests)
    assert found["hits_by_tier"] == outcome.hits_by_tier
    assert min(outcome.hits_by_tier.values()) > 0
    assert found["hit_rate"] == pytest.approx(outcome.hit_rate)


def test_what_is_no_trace_gets_a_sentence(plan, tmp_path):
    trace = tmp_path / "t.jsonl"
    for content, words in (
        ("{}\n", "no trace that is known"),
        ("", "no request"),
        (None, "cannot read --trace"),
    ):
        if content is not None:
            trace.write_text(content)
        else:
            trace.unlink()
        done = plan(LLAMA_70B, "--trace", trace)
        assert done.exit_code == 2, done.output
        assert words in done.stderr
    trace.write_text('{"timestamp": 0, "hash_ids": [1]}\n')
    done = plan(LLAMA_70B, "--trace", trace, device_memory=str(16 * 327_680))
    assert "the device holds no block of 512 tokens" in done.stderr
    assert "give one of them" in plan(LLAMA_70B, "--trace", trace, "--simulated", trace).stderr


def test_what_a_simulation_has_counted_is_worth(plan, tmp_path):
    """10 blocks of 512 tokens a request, at 1,000 tokens a second; 3 of them come from host memory and 6 from disk."""
    file = tmp_path / "hits.json"
    file.write_text(json.dumps(SIMULATED))
    speeds = ("--prefill", 1000, "--host-load", "32.768GB", "--disk-load", "3.2768GB")
    tiers = ("--host-memory", "1GiB", "--disk", "1TB")
    found = said(plan(LLAMA_70B, "--json", *tiers, *speeds, "--simulated", file, "--price-per-hour", 3.6))
    trace = found["trace"]
    assert trace["hit_rate"] == 0.5
    assert trace["load_s"] == pytest.approx(100 * (3 * 512 * 1e-5 + 6 * 512 * 1e-4))
    assert 100 * 5.12 <= trace["prefill_s"] <= 1.2 * 100 * 5.12, "and attention"
    assert trace["money"] == pytest.approx((trace["prefill_s"] - trace["load_s"]) / 1000)
    told = plan(LLAMA_70B, *tiers, *speeds, "--simulated", file, "--price-per-hour", 3.6).output
    assert "50.0% of 2,000 blocks hit (100 device, 300 host, 600 disk)" in told
    assert "money saved" in told


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[]",
        "{}",
        json.dumps({**SIMULATED, "hit_rate": 0.7}),
        json.dumps({**SIMULATED, "num_blocks": -1}),
        json.dumps({**SIMULATED, "hits_by_tier": {"tape": 1000}}),
        json.dumps({**SIMULATED, "hits_by_tier": {"device": 0.5}}),
    ],
)
def test_what_no_simulation_has_written_is_refused(plan, tmp_path, wrong):
    file = tmp_path / "hits.json"
    file.write_text(wrong)
    done = plan(LLAMA_70B, "--simulated", file)
    assert done.exit_code == 2
    assert done.stderr.startswith("kvtide: --simulated ")
    assert len(done.stderr.splitlines()) == 1


# ---- what cannot be meant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no object"),
        ("{}", "names no model_type"),
        ({"model_type": "new"}, "does not say num_hidden_layers"),
        ({**GPT_2, "n_layer": "many"}, "n_layer='many'"),
        ({**GPT_2, "n_head": 0}, "n_head=0"),
        ({**GPT_2, "n_head": 7}, "768 is no multiple of 7 heads"),
        ({**GPT_2, "num_key_value_heads": 5}, "12 heads and 5 KV heads"),
        ({**GPT_2, "architectures": 3}, "of another type than in a config.json"),
        ({**GPT_2, "model_type": []}, "of another type than in a config.json"),
        ({**GPT_2, "layer_types": 3}, "of another type than in a config.json"),
        ({**LLAMA_70B, "num_kv_shared_layers": 80}, "80 of 80 layers have no KV"),
        (MAMBA, "recurrent state"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({**DEEPSEEK_V3, "qk_rope_head_dim": None}, "does not say qk_rope_head_dim"),
    ],
)
def test_a_config_that_says_too_little_gets_a_sentence(plan, facts, words):
    done = plan(facts)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert done.stderr.startswith("kvtide: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host-memory", "lots"), "--host-memory must look like 4096, '64MiB'"),
        (("--host-memory", "-1"), "--host-memory must look like"),
        (("--disk", "1.5XB"), "--disk must look like"),
        (("--kv-dtype", "fp8"), "--kv-dtype must be one of bfloat16, float16, float32"),
        (("--block-tokens", "17"), "block_tokens must be one of 16, 32"),
        (("--block-tokens", "0"), "block_tokens must be one of 16, 32"),
        (("--prefill", "0"), "--prefill must be tokens a second"),
        (("--prefill", "nan"), "--prefill must be tokens a second"),
        (("--disk-load", "0"), "--disk-load must be bytes of KV a second"),
        (("--host-load", "fast"), "--host-load must look like"),
        (("--disk-ratio", "0.5"), "--disk-ratio must be from 1 to 100"),
        (("--price-per-hour", "3"), "of which --trace?"),
        (("--price-per-hour", "nan"), "--price-per-hour must be a price"),
        (("--measured", "none.json"), "cannot read --measured"),
        (("--measured", ROOT / "benchmarks/results/codec_zen4-2core_2026-11-30.json"), "is neither what"),
        (("--measured", ROOT / "README.md"), "is no JSON"),
        (("--simulated", "none.json"), "cannot read --simulated"),
        (("--write", "plan.yaml"), "must end in .toml or .json"),
        (("--write", "no/such/folder/plan.json"), "cannot write"),
    ],
)
def test_options_that_cannot_be_meant_get_a_sentence(plan, options, words):
    done = plan(LLAMA_70B, *options)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_device_that_holds_nothing_gets_a_sentence(plan):
    done = plan(LLAMA_70B, device_memory="80")
    assert done.exit_code == 2
    assert "--device-memory 80 holds no block: 16 tokens take 5,242,880 bytes" in done.stderr


def test_a_place_with_nothing_there_gets_a_sentence(tmp_path):
    done = CliRunner().invoke(app, ["plan", "--config", str(tmp_path / "none"), "--device-memory", "1GiB"])
    assert done.exit_code == 2
    assert "no such file or directory" in done.stderr


# ---- the page that documents it --------------------------------------------------------------------------------------


def test_the_documented_example_is_what_is_said(plan):
    command = re.search(r"```sh\n(.*?)\n```", DOC)[1].split()
    assert command[:6] == ["kvtide", "plan", "--config", "config.json", "--kv-dtype", "float16"]
    done = plan(LLAMA_70B, *command[4:])
    assert done.output.rstrip("\n") == re.search(r"```text\n(.*?)\n```", DOC, re.DOTALL)[1]


def test_it_runs_where_there_is_no_torch(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'gguf', 'huggingface_hub']));"
        "from tiering.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "--config", str(tmp_path), "--device-memory", "80GiB"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4,000 tokens: 1.22 GiB" in done.stdout
