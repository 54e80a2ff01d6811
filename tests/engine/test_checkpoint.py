"""A model that cannot be loaded gets one sentence that says what to do, before its weights are read."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from engine.checkpoint import NotLoaded, check_way_to_hub, config_at, local_place
from engine.model import load_model
from engine.supported import NotServed, shape_of
from tests.engine.families import CASES, REFUSED


@pytest.fixture
def folder(tiny_llama_dir, tmp_path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny_llama_dir, tmp_path / "model")


def change(folder: Path, **facts) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | facts))


def complaint(name: object) -> str:
    """The one sentence."""
    with pytest.raises(ValueError) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unreadable(*_: object, **__: object):
    raise AssertionError("the weights were read")


@pytest.fixture
def no_weights(monkeypatch) -> None:
    """Reading any fails the test."""
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", unreadable)


class NoModels(BaseHTTPRequestHandler):
    """Has heard of none."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of it."""


def hub_at(monkeypatch, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def hub(monkeypatch) -> Iterator[None]:
    """One that answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), NoModels) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub_at(monkeypatch, server.server_port)
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("no_weights")
class TestDirectories:
    @pytest.mark.parametrize("name", REFUSED)
    def test_a_refused_model(self, folder, name):
        (folder / "config.json").write_text(json.dumps(REFUSED[name].config(), default=str))
        assert complaint(folder) == f"{name} is not served: {REFUSED[name].refusal.why}"

    @pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
    def test_a_quantised_one(self, folder, method):
        change(folder, quantization_config={"quant_method": method})
        said = complaint(folder)
        assert said.startswith("LlamaForCausalLM is not served: its weights are quantised")
        assert method.upper() in said
        assert "use the original weights, or a GGUF of them" in said

    def test_an_absent_one(self, tmp_path):
        for name in (tmp_path / "none", "./none", "~/none-of-these", "some/where/else", "none.gguf"):
            assert (
                complaint(name) == f"cannot load the model {str(name)!r}: there is no such file or directory"
            )

    def test_an_empty_one(self, tmp_path):
        assert complaint(tmp_path).endswith(
            "it holds neither a config.json nor a GGUF file; give the directory of a transformers model"
        )

    def test_one_without_weights(self, folder):
        """As a gated model's files look where its terms were not accepted."""
        (folder / "model.safetensors").unlink()
        assert "if the model is gated, accept its terms on the hub, then run `hf auth login`" in complaint(
            folder
        )

    def test_one_with_pointers_in_place_of_weights(self, folder):
        (folder / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        )
        assert "model.safetensors is a Git LFS pointer and not the weights; run `git lfs pull`" in complaint(
            folder
        )

    def test_one_with_a_part_of_its_weights(self, folder):
        shutil.move(folder / "model.safetensors", folder / "model-00001-of-00003.safetensors")
        files = {f"layer.{i}": f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        assert "2 files of its weights are absent, such as model-00002-of-00003" in complaint(folder)
        (folder / "model.safetensors.index.json").write_text("{")
        assert "index.json cannot be read; download it again" in complaint(folder)

    @pytest.mark.parametrize("content", ["{", "[1]", ""])
    def test_one_whose_config_is_broken(self, folder, content):
        (folder / "config.json").write_text(content)
        assert "config.json" in complaint(folder)

    def test_one_whose_config_lacks_something(self, folder):
        (folder / "config.json").write_text('{"model_type": "llama"}')
        assert "does not say num_hidden_layers" in complaint(folder)


def test_weights_that_the_files_lack_are_not_made_up(folder):
    """transformers would fill them with random numbers, and warn."""
    change(folder, num_hidden_layers=4)
    assert "its files lack 9 weights, such as model.layers.3.input_layernorm.weight" in complaint(folder)


@pytest.mark.parametrize("name", [3, None, b"demo", ["demo"]])
def test_what_is_neither_a_name_nor_a_path(name):
    assert complaint(name) == (
        f'cannot load the model {str(name)!r}: give "demo", a directory, a GGUF file, a name on the hub, or a Model'
    )


def test_a_hub_that_nobody_can_reach_is_not_waited_for(monkeypatch):
    """transformers sleeps between one try and the next."""

    def sleep(_: float) -> None:
        raise AssertionError("it waits")

    with closing(socket.socket()) as unheard:  # bound, and not listening
        unheard.bind(("127.0.0.1", 0))
        hub_at(monkeypatch, unheard.getsockname()[1])
        monkeypatch.setattr(time, "sleep", sleep)
        said = complaint("org/model")
    assert said.startswith(
        "cannot load the model 'org/model': the hub cannot be reached and no copy is in its cache"
    )


def test_nobody_is_asked_for_a_model_that_is_in_the_hubs_cache(monkeypatch, tmp_path):
    """Or it could not be loaded where there is no network."""
    cached = tmp_path / "models--org--model"
    snapshot = cached / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))
        hub_at(monkeypatch, unheard.getsockname()[1])
        check_way_to_hub("org/model")
        with pytest.raises(NotLoaded, match="cannot be reached"):
            check_way_to_hub("org/another")


@pytest.mark.usefixtures("hub")
def test_a_model_that_the_hub_does_not_have():
    assert "neither a directory of this name nor a model on the hub that you may see" in complaint(
        "org/model"
    )


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError, "'org/model': it is gated: accept its terms at https://huggingface.co/org/model"),
        (RepositoryNotFoundError, "neither a directory of this name nor a model on the hub that you may see"),
        (LocalEntryNotFoundError, "run `hf download org/model --local-dir DIR`, and give DIR"),
    ],
)
def test_what_the_hub_says_no_to(monkeypatch, error, words):
    """transformers wraps the hub's error in one of its own, of several lines."""

    def refuse(*_: object, **__: object):
        cause = error.__new__(error)  # wants an HTTP response otherwise
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.") from cause

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", refuse)
    assert words in complaint("org/model")


@pytest.mark.usefixtures("hub")
def test_what_transformers_says_otherwise_is_kept_to_its_first_line(monkeypatch):
    def refuse(*_: object, **__: object):
        raise OSError("Something is odd.\nRead a lot.")

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", refuse)
    assert complaint("org/model").endswith("or a name on the hub (Something is odd.)")


@pytest.mark.usefixtures("no_weights", "hub")
def test_a_refused_model_on_the_hub_is_not_downloaded(monkeypatch):
    config = REFUSED["GptOssForCausalLM"].config()
    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", lambda *_, **__: (config, {}))
    assert complaint("org/model").startswith("GptOssForCausalLM is not served: its attention adds sinks")


def test_names_and_places(tmp_path):
    assert local_place(tmp_path) == tmp_path
    assert local_place("org/model") is None
    assert local_place("gpt2") is None


def test_a_config_may_be_named_itself(folder):
    assert shape_of(config_at(folder / "config.json")) == shape_of(config_at(folder))
    assert shape_of(config_at(folder)) == shape_of(CASES["llama"].config().to_dict())


def test_errors_are_what_they_are_called():
    assert issubclass(NotLoaded, ValueError)
    assert issubclass(NotServed, ValueError)
