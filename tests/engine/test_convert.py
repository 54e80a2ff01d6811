"""A GGUF file is converted once, into what transformers would have loaded had the model been published so."""

import logging
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import convert
from engine.convert import converted
from engine.gguf_header import MODEL_TYPES, read_header
from engine.model import load_model
from engine.supported import NotServed, shape_of
from tests.engine.families import CASES
from tests.engine.naive import Driver, reference_generate, tokens

gguf = pytest.importorskip("gguf")
from tests.engine.gguf_files import write_gguf  # noqa: E402 - needs gguf

# What a file cannot say is as transformers takes it for granted.
SIZES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "phi3": ("phi3", {}),
    "gemma3": (
        "gemma3_text, window in some layers",
        {
            "num_hidden_layers": 7,
            "sliding_window_pattern": 6,
            "rope_parameters": None,
            "query_pre_attn_scalar": 256,
        },
    ),
}


def made(kind: str) -> torch.nn.Module:
    """A tiny model of a family, with norms that are not all ones."""
    name, sizes = SIZES[kind]
    case = CASES[name]
    config = case.kind(**{**case.config().to_dict(), "layer_types": None, **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for weights in hf.parameters():
                if weights.ndim == 1:
                    weights.add_(torch.rand_like(weights) * 0.1)
    return hf


@pytest.fixture(scope="module")
def llama() -> torch.nn.Module:
    return made("llama")


@pytest.fixture(scope="module")
def llama_file(llama, tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama)


@pytest.fixture
def file(llama_file, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return shutil.copy(llama_file, tmp_path / "tiny.gguf")


def test_there_is_a_model_for_each_family_that_is_read():
    assert set(SIZES) == set(MODEL_TYPES)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_every_family_that_is_read(kind, tmp_path):
    """Weights, windows, and so tokens are those of the model that the file was made of."""
    hf = made(kind)
    path = write_gguf(tmp_path / "tiny.gguf", hf)
    model = load_model(path, cache_dir=tmp_path / "cache")
    assert model.shape == shape_of(hf.config.to_dict())
    assert model.shape.layout("float32", 16) == shape_of(read_header(path).config()).layout("float32", 16)
    weights = model.hf.state_dict()
    for name, expected in hf.state_dict().items():
        torch.testing.assert_close(
            weights[name], expected, rtol=0, atol=1e-6
        )  # gemma3's norms are stored plus 1
    driver, prompt = Driver(model), tokens(1, 100)
    row = driver.row(prompt)
    assert driver.generate([row], driver.prefill(row), 8)[0] == reference_generate(hf, prompt, 8)


def test_a_quantised_file_gives_the_values_that_it_holds(llama, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", llama, quantise=True)
    model = load_model(path, cache_dir=tmp_path / "cache")
    [held] = [each for each in gguf.GGUFReader(path).tensors if each.name == "blk.1.ffn_up.weight"]
    expected = gguf.quants.dequantize(held.data, held.tensor_type)
    assert torch.equal(model.hf.model.layers[1].mlp.up_proj.weight, torch.from_numpy(expected))
    assert not torch.equal(
        model.hf.model.layers[1].mlp.up_proj.weight, llama.model.layers[1].mlp.up_proj.weight
    )


def test_its_tokenizer_comes_along(llama, tokenizer, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer=tokenizer)
    model = load_model(path, cache_dir=tmp_path / "cache")
    assert model.tokenizer.encode("the end") == tokenizer.encode("the end")
    assert model.eos_ids == {tokenizer.eos_token_id}
    assert shape_of(read_header(path).config()).vocab_size == 512


def test_a_file_is_converted_once(llama_file, tmp_path, monkeypatch):
    cache, said = tmp_path / "cache", []
    first = converted(llama_file, cache, said.append)
    assert [words in said[i] for i, words in ((0, "689.8 KiB of float32"), (1, "is converted"))] == [
        True,
        True,
    ]
    monkeypatch.setattr(convert, "_convert", None)
    assert converted(llama_file, cache, said.append) == first
    assert converted(llama_file.parent / ".." / llama_file.parent.name / llama_file.name, cache) == first
    assert len(said) == 2


def test_a_directory_with_a_file_is_the_file(llama_file, tmp_path):
    """Unless it holds several, or a config.json, which says what to load."""
    assert load_model(llama_file.parent, cache_dir=tmp_path).source == converted(llama_file, tmp_path)
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(llama_file, tmp_path / name)
    with pytest.raises(ValueError, match=rf"holds 2 GGUF files; name one, such as {tmp_path}/a\.gguf"):
        load_model(tmp_path, cache_dir=tmp_path)


def test_a_file_that_has_changed_is_converted_again(file, tmp_path):
    """The old directory stays as it was, for whoever has it open."""
    first = converted(file, tmp_path)
    os.utime(file, ns=(1, 1))
    second = converted(file, tmp_path)
    assert first != second
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_two_at_a_time_convert_once(llama_file, tmp_path, monkeypatch):
    """The second waits for the first."""
    real, calls = convert._convert, []

    def slow(*arguments: object) -> None:
        calls.append(arguments)
        time.sleep(0.2)
        real(*arguments)

    monkeypatch.setattr(convert, "_convert", slow)
    places: list[Path] = []
    threads = [
        threading.Thread(target=lambda: places.append(converted(llama_file, tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(calls) == 1
    assert len(places) == 2
    assert places[0] == places[1]


def test_a_conversion_that_fails_leaves_nothing_to_be_found(llama_file, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "is_converted", lambda _: False)
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        converted(llama_file, tmp_path)
    assert [path.suffix for path in (tmp_path / "gguf").iterdir()] == [".lock"]


@pytest.mark.parametrize("num_parameters", [10_000_000, 8_000_000_000])
def test_who_waits_long_is_told_before(file, tmp_path, monkeypatch, caplog, num_parameters):
    """A large file is worth a warning, which shows where nobody set logging up."""
    monkeypatch.setattr(convert, "_weight_bytes", lambda _: 4 * num_parameters)
    monkeypatch.setattr(convert, "_check_room", lambda *_: None)
    with caplog.at_level(logging.INFO, "engine.convert"):
        converted(file, tmp_path)
    record = caplog.records[0]
    if num_parameters > 1e9:
        assert record.levelname == "WARNING"
        assert "29.8 GiB of float32; this takes about 7 minutes or more, once" in record.message
    else:
        assert record.levelname == "INFO"
        assert "38.1 MiB of float32; this takes about half a minute, once" in record.message


def test_memory_or_disk_that_do_not_suffice(file, tmp_path, monkeypatch):
    """One sentence, before anything is written."""
    monkeypatch.setattr(convert, "available_memory_bytes", lambda: 1_000_000)
    with pytest.raises(
        ValueError, match=r"takes 1\.0 MiB of memory and 976\.6 KiB are free; convert it on a larger"
    ):
        converted(file, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(ValueError, match=r"writes 689\.8 KiB and .* has 1000 B left; make room there"):
        converted(file, tmp_path)
    assert [path.suffix for path in (tmp_path / "gguf").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("metadata", "dropped"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "the scaling of its rotary embedding"),
        ({"llama.rope.scaling.factor": 8.0}, "the scaling of its rotary embedding"),
        ({"llama.attention.sliding_window": 128}, "its sliding window"),
        ({"llama.attention.value_length": 32}, "the size of its heads"),
        ({"llama.expert_count": 8}, "its expert_count"),
        ({"llama.attention.scale": 0.5}, "its attention.scale"),
    ],
)
def test_what_transformers_would_drop_is_refused(llama, tmp_path, metadata, dropped):
    """It would compute something else, and say nothing."""
    path = write_gguf(tmp_path / "tiny.gguf", llama, metadata=metadata)
    with pytest.raises(NotServed, match=f"Tiny llama is not served from a GGUF: .* not read {dropped}"):
        load_model(path, cache_dir=tmp_path)
    with pytest.raises(NotServed, match="rotary"):
        load_model(write_gguf(path, llama, more_tensors=("rope_freqs.weight",)), cache_dir=tmp_path)
    assert not (tmp_path / "gguf").exists()


def test_weights_that_transformers_does_not_read_are_not_lost(llama, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", llama, more_tensors=("blk.0.attn_q.bias",))
    with pytest.raises(ValueError, match="holds 176584 parameters, of which transformers reads 176576"):
        load_model(path, cache_dir=tmp_path)


def test_a_window_that_hides_nothing_may_be_dropped(llama, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", llama, metadata={"llama.attention.sliding_window": 4096})
    assert shape_of(read_header(path).config()).windows == (None,) * 3


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gpt-oss", "gpt_oss is not served: its attention adds sinks"),
        ("gemma2", "gemma2 is not served: its attention caps"),
        ("deepseek2", "latent"),
        ("mamba", "recurrent"),
        ("clip", "images"),
        ("granite", "Some model is not served: GGUF files of granite are not read, those of llama, qwen2, "),
        ("unheard-of", "unheard-of is not served: its family, unheard-of, has not been tried"),
    ],
)
def test_other_families_are_refused_by_name(tmp_path, kind, words):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", kind)
    writer.add_name("Some model")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotServed, match=words):
        load_model(tmp_path / "a.gguf", cache_dir=tmp_path)


def test_one_of_several_parts_is_refused(llama, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", llama, metadata={"split.count": 3})
    with pytest.raises(NotServed, match="one of several parts; join them with `llama-gguf-split --merge`"):
        load_model(path, cache_dir=tmp_path)


def test_a_header_says_what_gguf_reads(llama, tokenizer, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", llama, tokenizer=tokenizer)
    header, theirs = read_header(path), gguf.GGUFReader(path)
    assert header.num_elements == {each.name: int(each.n_elements) for each in theirs.tensors}
    assert list(header.metadata) == [key for key in theirs.fields if not key.startswith("GGUF.")]
    for key, value in header.metadata.items():
        read = theirs.fields[key].contents()
        assert value == read if isinstance(value, (int, float, str)) else value.length == len(read)


def test_a_file_that_is_cut_short_or_none_at_all(file, tmp_path):
    whole = file.read_bytes()
    for size in (5, 20, 30, 100, 500, 900):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"tiny\.gguf is cut short or damaged; fetch it again"):
            load_model(file, cache_dir=tmp_path)
    for wrong, words in (
        (b"", "begin with GGUF"),
        (b"PK\x03\x04", "begin with GGUF"),
        (b"GGUF\1" + bytes(99), "version is 1"),
    ):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"no GGUF file that can be read: .*{words}"):
            load_model(file, cache_dir=tmp_path)
