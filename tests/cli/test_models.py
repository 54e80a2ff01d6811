"""`kvtide models`: what a user learns of a model before anything of it is downloaded, and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiering.cli.app import app

# As published, of which only what matters here is kept.
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "head_dim": 64,
    "hidden_size": 2048,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"},
    "vocab_size": 128256,
}
QWEN_2_5_0_5B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL_7B_V0_1 = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 256,
    "hidden_size": 1152,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "rope_scaling": None,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
QWEN_3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "head_dim": 128,
    "hidden_size": 2048,
    "max_position_embeddings": 40960,
    "model_type": "qwen3_moe",
    "num_attention_heads": 32,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PYTHIA_70M = {
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_size": 512,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "vocab_size": 50304,
}
GPT_OSS = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_hidden_layers": 24}


@pytest.fixture
def config(tmp_path):
    """Writes a config.json and returns its path."""

    def write(facts: object) -> str:
        (tmp_path / "config.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
        return str(tmp_path / "config.json")

    return write


def models(*arguments: str):
    return CliRunner().invoke(app, ["models", *arguments])


@pytest.mark.parametrize(
    ("facts", "token_bytes", "windows"),
    [
        (LLAMA_3_2_1B, 16 * 2 * 8 * 64 * 2, [None] * 16),
        (QWEN_2_5_0_5B, 24 * 2 * 2 * 64 * 2, [None] * 24),
        (MISTRAL_7B_V0_1, 32 * 2 * 8 * 128 * 2, [4096] * 32),
        (GEMMA_3_1B, 26 * 2 * 1 * 256 * 2, ([512] * 5 + [None]) * 4 + [512] * 2),
        (QWEN_3_30B, 48 * 2 * 4 * 128 * 2, [None] * 48),
        (PYTHIA_70M, 6 * 2 * 8 * 64 * 2, [None] * 6),
    ],
    ids=lambda each: each["model_type"] if isinstance(each, dict) else "",
)
def test_what_published_models_cost(config, facts, token_bytes, windows):
    done = models(config(facts), "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said["served"] is True
    assert said["reason"] is None
    assert said["architecture"] == facts["architectures"][0]
    assert said["max_len"] == facts["max_position_embeddings"]
    assert said["windows"] == windows
    assert said["kv_bytes"] == {
        "bfloat16": {"token": token_bytes, "block": 16 * token_bytes},
        "float16": {"token": token_bytes, "block": 16 * token_bytes},
        "float32": {"token": 2 * token_bytes, "block": 32 * token_bytes},
    }


def test_the_demos_model_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = models("demo")
    assert done.exit_code == 0, done.output
    assert "LlamaForCausalLM (llama) is served." in done.output
    plan = CliRunner().invoke(app, ["plan", "--config", "demo", "--device-memory", "1GiB"])
    assert plan.exit_code == 0, plan.output


def test_the_same_for_people(config):
    done = models(config(GEMMA_3_1B))
    assert done.exit_code == 0
    for words in (
        "Gemma3ForCausalLM (gemma3_text) is served.",
        "26 layers, 1 KV heads of 256, at most 32768 tokens; a sliding window of 512 tokens in 22 of them",
        "deterministic mode: offered",
    ):
        assert words in done.output
    [bfloat16] = [line.split() for line in done.output.splitlines() if line.startswith("bfloat16")]
    assert bfloat16 == ["bfloat16", "26,624", "B", "425,984", "B", "832.0", "MiB"]
    assert "deterministic mode: how many rows an expert computes" in models(config(QWEN_3_30B)).output


def test_a_model_that_is_not_served(config):
    done = models(config(GPT_OSS))
    assert done.exit_code == 1
    assert done.output == (
        "GptOssForCausalLM is not served: its attention adds sinks to each softmax, which are not computed here\n"
    )
    done = models(config(GPT_OSS), "--json")
    assert done.exit_code == 1
    assert json.loads(done.output) == {
        "served": False,
        "reason": "GptOssForCausalLM is not served: its attention adds sinks to each softmax, "
        "which are not computed here",
    }


@pytest.mark.parametrize(
    "facts", ["{", "[]", "{}", '{"model_type": "llama"}', '{"architectures": ["LlamaForCausalLM"]}']
)
def test_what_cannot_be_read(config, facts):
    for more in ([], ["--json"]):
        done = models(config(facts), *more)
        assert done.exit_code == 2
        assert done.stdout == ""
        assert done.stderr.startswith("kvtide: cannot load the model")
        assert len(done.stderr.splitlines()) == 1


def test_what_is_not_there(tmp_path):
    for place, words in (
        (tmp_path / "none.json", "no such file"),
        (tmp_path, "neither a config.json nor a GGUF"),
    ):
        done = models(str(place))
        assert done.exit_code == 2
        assert words in done.stderr


def test_a_directory_needs_no_weights(config):
    assert models(str(Path(config(PYTHIA_70M)).parent)).exit_code == 0


def test_a_gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for add, value in (
        (writer.add_block_count, 16),
        (writer.add_context_length, 2048),
        (writer.add_embedding_length, 2048),
        (writer.add_head_count, 32),
        (writer.add_head_count_kv, 8),
        (writer.add_vocab_size, 128256),
    ):
        add(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert json.loads(models(str(tmp_path), "--json").output)["kv_bytes"]["bfloat16"]["token"] == 32768


def test_it_runs_where_there_is_no_torch(config):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'gguf', 'huggingface_hub']));"
        "from tiering.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "models", config(LLAMA_3_2_1B)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM (llama) is served." in done.stdout
