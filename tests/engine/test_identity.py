"""Two engines share KV only where every fact that the KV depends on is the same."""

import json
import os
import shutil

import pytest
import torch

from engine import identity as module
from engine.config import EngineConfig
from engine.identity import identity
from engine.model import Model, load_model, random_model, recipe
from tests.engine.families import CASES

CONFIG = EngineConfig()


def name_of(model, *, kv_dtype="bfloat16", block_tokens=16, config=CONFIG, **more):
    return identity(model, model.layout(kv_dtype, block_tokens), config, **more)


@pytest.fixture
def folder(tiny_llama_dir, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_llama_dir, tmp_path / "model")


def counted(monkeypatch) -> list[str]:
    read: list[str] = []
    real = module.hashlib.file_digest

    def file_digest(file, algorithm):
        read.append(os.path.basename(file.name))  # noqa: PTH119  # a file object's name is a string
        return real(file, algorithm)

    monkeypatch.setattr(module.hashlib, "file_digest", file_digest)
    return read


def test_the_same_facts_give_the_same_name(folder):
    assert name_of(load_model(folder)) == name_of(load_model(folder))


def test_every_fact_counts(folder):
    model = load_model(folder)
    names = [
        name_of(model),
        name_of(model, kv_dtype="float32"),
        name_of(model, block_tokens=32),
        name_of(model, config=EngineConfig(deterministic=True)),
        name_of(load_model(folder, dtype="bfloat16")),
        name_of(random_model(CASES["llama"].config())),
        name_of(random_model(CASES["llama"].config(), seed=1)),
        name_of(random_model(CASES["qwen2"].config())),
    ]
    (folder / "tokenizer.json").write_text("{}")
    names.append(name_of(model))
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"rms_norm_eps": 0.001}))
    names.append(name_of(load_model(folder)))
    assert len({name.digest for name in names}) == len(names)


def test_weights_drawn_on_a_gpu_are_known_by_what_made_them(monkeypatch):
    """Their gigabytes are not read: seed, kind of device and versions stand for them, and each of these counts."""
    hf = random_model(CASES["llama"].config()).hf
    monkeypatch.setattr(module, "_state_digest", lambda _: pytest.fail("the weights were read"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")

    def named(seed, device):
        return name_of(Model(hf, name="random", made_by=recipe(seed, torch.device(device))))

    first = named(0, "cuda:0")
    assert named(0, "cuda:0") == first
    others = [named(1, "cuda:0"), named(0, "cuda:1")]
    monkeypatch.setattr(torch, "__version__", "0.1")
    others.append(named(0, "cuda:0"))
    assert len({name.digest for name in [first, *others]}) == 4


def test_settings_that_change_no_kv_do_not_count(folder):
    model = load_model(folder)
    other = EngineConfig(max_batch_tokens=64, host_bytes=0, max_num_seqs=1, load="never")
    assert name_of(model, config=other) == name_of(model)


def test_threads_count_in_deterministic_mode_only(folder, threads):
    model = load_model(folder)
    facts = dict(name_of(model, config=EngineConfig(deterministic=True)).fields)
    assert facts["compute_threads"] == str(threads)
    assert "compute_threads" not in dict(name_of(model).fields)
    assert facts["compute_torch"] == torch.__version__


def test_who_attends_counts_in_deterministic_mode_only(folder, monkeypatch):
    """Settings of numba's may take the CPU's own kernel away, and another one computes other last bits."""
    model, deterministic = load_model(folder), EngineConfig(deterministic=True)
    plain, exact = name_of(model), name_of(model, config=deterministic)
    monkeypatch.setattr("engine.lanes.registers", lambda: (0, False))
    assert name_of(model, config=deterministic) != exact
    assert name_of(model) == plain


def test_deterministic_mode_is_for_activations_that_were_measured():
    config = CASES["llama"].config()
    config.hidden_act = "gelu_new"
    model = random_model(config)
    assert name_of(model)
    with pytest.raises(ValueError, match="its activation, gelu_new,"):
        name_of(model, config=EngineConfig(deterministic=True))


def test_weights_are_read_once(folder, monkeypatch):
    read = counted(monkeypatch)
    model = load_model(folder)
    first = name_of(model)
    assert "model.safetensors" in read
    read.clear()
    assert name_of(model) == first
    assert not read


def test_changed_weights_are_read_again(folder):
    """One byte differs, size and name do not."""
    model = load_model(folder)
    first = name_of(model)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    before = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert name_of(model) != first


def test_a_copied_digest_file_is_not_believed(folder, tmp_path, monkeypatch):
    """It travels with the directory, but the files there are others."""
    first = name_of(load_model(folder))
    copied = shutil.copytree(folder, tmp_path / "copy")
    read = counted(monkeypatch)
    assert name_of(load_model(copied)) == first
    assert "model.safetensors" in read


def test_digests_of_a_directory_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (folder / ".kvtide-digests.json").unlink(missing_ok=True)  # copied along, if another test left one
    (folder / ".kvtide-digests.json").mkdir()  # root may write anywhere, but not replace a folder
    model = load_model(folder)
    first = name_of(model, cache_dir=tmp_path / "cache")
    read = counted(monkeypatch)
    assert name_of(model, cache_dir=tmp_path / "cache") == first
    assert not read
    assert len(list((tmp_path / "cache/digests").iterdir())) == 1


def test_a_damaged_digest_file_is_written_anew(folder):
    first = name_of(load_model(folder))
    (folder / ".kvtide-digests.json").write_text("[not json")
    assert name_of(load_model(folder)) == first
    assert "model.safetensors" in json.loads((folder / ".kvtide-digests.json").read_text())
