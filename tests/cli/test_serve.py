"""`kvtide serve` as an operator runs it: a process with a port, a file, signals, and a restart."""

import json
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import EngineConfig, config_from
from kvstore import json_logs
from kvstore.admin import AdminConfig
from tests.engine.engines import tokens
from tests.engine.families import CASES
from tiering.cli import serve
from tiering.cli.serve_config import serve_config

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105 - opens nothing
READ_TOKEN = "another-one-of-the-tests-98765"  # noqa: S105 - likewise
ALL = "0.0.0.0"  # noqa: S104 - to be refused, or reached from here alone
ENGINE = {
    "kv_dtype": "float32",
    "device_bytes": "4MiB",
    "host_bytes": "4MiB",
    "disk_bytes": "64MiB",
    "disk_min_free_bytes": 0,
    "num_threads": 1,
}
PROMPT = list(range(3, 163))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with random weights, on disk."""
    return saved(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of so many layers that what it is given takes far longer than anybody waits for it."""
    return saved(tmp_path_factory.mktemp("slow-llama"), num_hidden_layers=16)


def saved(folder: Path, **changed: int) -> Path:
    import torch
    from transformers import LlamaForCausalLM

    config = CASES["llama"].config()
    config.update(changed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Served:
    """The command, running; its lines as they come."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-m", "tiering", "serve", *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        """On standard error."""
        self._changed = threading.Condition()
        self._out: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=read, daemon=True) for read in (self._read_out, self._read_err)
        ]
        for thread in self._threads:
            thread.start()

    def _read_out(self) -> None:
        for line in self.process.stdout:
            self._out.put(line.rstrip())
        self._out.put("")

    def _read_err(self) -> None:
        for line in self.process.stderr:
            with self._changed:
                self.said.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self.said.append("")
            self._changed.notify_all()

    def url(self) -> str:
        """Where it is ready."""
        line = self._out.get(timeout=100)
        found = re.fullmatch(r"kvtide serves \S+ at (http://\S+)", line)
        assert found, (line, self.said)
        return found[1]

    def wait_for(self, text: str) -> None:
        """Until it says so on standard error."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(text in line for line in self.said) or self.said[-1:] == [""], timeout=100
            )
        assert any(text in line for line in self.said), self.said

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(timeout=100)
        for thread in self._threads:
            thread.join(timeout=60)
        return code

    @property
    def last(self) -> str:
        """The last line on standard error."""
        return next(line for line in reversed(self.said) if line)


@pytest.fixture
def served() -> Iterator[object]:
    """Starts the command; ends what a test has left running."""
    running: list[Served] = []

    def start(*arguments: object, **environment: str) -> Served:
        running.append(Served(*arguments, **environment))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.ended()
        one.process.stdout.close()
        one.process.stderr.close()


def config_file(folder: Path, *, suffix: str = ".json", admin: dict | None = None, **engine: object) -> Path:
    path = folder / f"kvtide{suffix}"
    path.write_text(json.dumps({"engine": {**ENGINE, **engine}, "admin": {"port": 0, **(admin or {})}}))
    return path


def ask(url: str, path: str, body: object = None, *, method: str | None = None, token: str | None = None):
    """The status and the JSON of an answer."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    data = None
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    request = urllib.request.Request(url + path, data, headers, method=method)  # noqa: S310 - our own
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def done(url: str, job: dict, **options: str) -> dict:
    """The job when it has ended."""
    pause = threading.Event()
    for _ in range(1000):
        _, job = ask(url, f"/admin/v1/jobs/{job['id']}", **options)
        if job["state"] != "running":
            return job
        pause.wait(0.02)
    pytest.fail(f"never done: {job}")


# ---- a day in its life ---------------------------------------------------------------------------------------------


def test_it_serves_is_changed_ends_and_finds_its_blocks_again(served, model, tmp_path):
    config = config_file(tmp_path, disk_path=str(tmp_path / "kv"))
    first = served(model, "--config", config)
    url = first.url()
    assert ask(url, "/healthz") == (200, {"status": "ok"})
    assert ask(url, "/readyz")[0] == 200
    status, job = ask(url, "/admin/v1/warm", {"token_ids": PROMPT})
    assert status == 202
    assert done(url, job)["state"] == "done"
    status, tiers = ask(url, "/admin/v1/tiers")
    assert status == 200
    assert {tier["name"]: tier["on"] for tier in tiers["tiers"]} == {
        "device": True,
        "host": True,
        "disk": True,
    }
    status, changed = ask(url, "/admin/v1/config", {"disk_deadline_s": 2.5, "ttl_s": 600}, method="PATCH")
    assert (status, changed["settings"]["disk_deadline_s"]) == (200, 2.5)
    assert ask(url, "/admin/v1/config")[1]["settings"]["ttl_s"] == 600
    assert first.end() == 0
    assert not any("Traceback" in line for line in first.said), first.said

    second = served(model, "--config", config)
    url = second.url()
    [own] = ask(url, "/admin/v1/namespaces")[1]["namespaces"]
    assert (own["own"], own["blocks"]) == (True, 10)
    assert ask(url, "/admin/v1/config")[1]["settings"]["disk_deadline_s"] == 10.0, "the file counts again"
    _, job = ask(url, "/admin/v1/verify", {})
    assert done(url, job)["result"]["records"] == 10
    assert second.end(signal.SIGINT) == 0


def test_tokens_open_what_they_are_for(served, model, tmp_path):
    token_file, config = tmp_path / "token", config_file(tmp_path)
    token_file.write_text(f"{TOKEN}\n")
    token_file.chmod(0o640)
    options = ("--config", config, "--token-file", token_file, "--host", ALL)
    one = served(model, *options, KVTIDE_ADMIN_READ_TOKEN=READ_TOKEN)
    url = one.url()
    one.wait_for("can be read by others than its owner")
    assert ask(url, "/healthz")[0] == 200
    assert ask(url, "/admin/v1/config")[0] == 401
    assert ask(url, "/admin/v1/config", token=READ_TOKEN)[0] == 200
    assert ask(url, "/admin/v1/flush", {}, token=READ_TOKEN)[0] == 403
    assert ask(url, "/admin/v1/flush", {}, token=TOKEN)[0] == 202
    assert one.end() == 0
    assert not any(secret in line for line in one.said for secret in (TOKEN, READ_TOKEN))


def test_lines_for_programs(served, model, tmp_path):
    one = served(model, "--config", config_file(tmp_path), "--log-format", "json", "--log-level", "info")
    one.url()
    assert one.end() == 0
    lines = [json.loads(line) for line in one.said if line]
    assert any("identity" in line["message"] for line in lines), "what an engine says of itself at start"
    assert lines[-1]["level"] == "info"


# ---- ends that are not in order --------------------------------------------------------------------------------------


def keep_busy(url: str) -> None:
    """Have it compute for longer than it waits at its end; a job that is accepted has not begun yet."""
    for seed in range(8):
        assert ask(url, "/admin/v1/warm", {"token_ids": tokens(seed, 4000)})[0] == 202
    for _ in range(1000):
        if sum(ask(url, "/admin/v1/tiers")[1]["queue"].values()) == 8:
            return
        threading.Event().wait(0.01)
    raise AssertionError(ask(url, "/admin/v1/tiers"))


def test_what_libraries_log_is_lines_for_programs_too(monkeypatch, capsys):
    library = logging.getLogger("transformers")
    monkeypatch.setattr(library, "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(library, "propagate", False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    json_logs.configure("info", "json")
    serve._join_logs()
    library.warning("a weight is odd")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == [
        "a weight is odd"
    ]


def test_a_second_signal_ends_it_at_once(served, slow_model, tmp_path):
    """While the first one waits for requests that take longer than it waits for any."""
    one = served(slow_model, "--config", config_file(tmp_path, max_batch_tokens=1, device_bytes="64MiB"))
    url = one.url()
    keep_busy(url)
    one.process.send_signal(signal.SIGTERM)
    one.wait_for("ending")
    one.process.send_signal(signal.SIGTERM)
    assert one.ended() == -signal.SIGTERM


def test_what_does_not_end_in_time_is_cut_off(served, slow_model, tmp_path):
    one = served(slow_model, "--config", config_file(tmp_path, max_batch_tokens=1, device_bytes="64MiB"))
    url = one.url()
    keep_busy(url)
    assert one.end() == 0
    assert any("had not ended after 5 seconds" in line for line in one.said), one.said


def test_a_signal_while_it_loads_ends_it(served, model, tmp_path):
    """The engine has said what it is, and the endpoint is not there yet; or not even that."""
    one = served(model, "--config", config_file(tmp_path))
    assert one.end() in (0, -signal.SIGTERM)
    assert not any("Traceback" in line for line in one.said), one.said


# ---- what it refuses, before anything is loaded --------------------------------------------------------------------


def refused(served, *arguments: object, **environment: str) -> str:
    """The one sentence that it says, having loaded no model."""
    one = served("no/such/model", *arguments, **environment)
    assert one.ended() == 2, one.said
    assert [line for line in one.said if line] == [one.last]
    return one.last


def test_other_machines_are_not_served_without_a_token(served, tmp_path):
    assert "no token is set" in refused(served, "--host", ALL, "--port", 0)
    config = config_file(tmp_path, admin={"host": "::"})
    assert "no token is set" in refused(served, "--config", config)


def test_a_port_that_is_in_use_gets_a_sentence(served):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in refused(
            served, "--port", port
        )


def test_a_model_that_is_not_there_gets_a_sentence(served):
    one = served("no/such/model", "--port", 0)
    assert one.ended() == 2
    assert "no/such/model" in one.last
    assert not any("Traceback" in line for line in one.said)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.yaml", "", "neither .toml nor .json"),
        ("a.json", "{", "is no JSON"),
        ("a.toml", "[engine", "is no TOML"),
        ("a.json", "[1]", "must have sections, [engine] and [admin]"),
        ("a.toml", "host = 1", "must have sections, [engine] and [admin]"),
        ("a.toml", "[engines]", "unknown section 'engines'; known are engine, admin"),
        ("a.toml", "[engine]\ncolour = 1", "unknown setting of [engine] 'colour'; known are device, "),
        ("a.toml", "[admin]\ncolour = 1", "unknown setting of [admin] 'colour'; known are host, port, "),
        (
            "a.toml",
            f'[admin]\ntoken = "{TOKEN}"',
            "holds 'token', which belongs in a file of its own (--token-file)",
        ),
        ("a.toml", '[engine]\nhost_bytes = "lots"', "host_bytes must look like"),
        ("a.toml", "[admin]\nport = 70000", "port must be a whole number from 0 to 65535"),
        ("a.toml", "[engine]\ndevice = 3", "device must be one of"),
        ("absent.toml", None, "cannot read"),
    ],
)
def test_a_file_that_cannot_be_meant_gets_a_sentence(tmp_path, name, content, sentence):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError) as said:
        serve_config(file, {}, token_file=None, read_token_file=None, environment={})
    assert sentence in str(said.value)
    assert TOKEN not in str(said.value)
    assert "\n" not in str(said.value).strip()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "is empty"), (b"\xff" * 20, "ASCII"), (b"short", "16 are needed"), (None, "cannot read")],
)
def test_a_token_file_that_holds_none_gets_a_sentence(tmp_path, content, sentence):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        serve_config(None, {}, token_file=file, read_token_file=None, environment={})


# ---- who wins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_options_win_over_the_file_and_files_over_the_environment(tmp_path, suffix, caplog):
    file, token_file = tmp_path / f"c{suffix}", tmp_path / "token"
    content = {
        ".json": '{"engine": {"ttl_s": 9}, "admin": {"port": 1, "max_listeners": 3}}',
        ".toml": "[engine]\nttl_s = 9\n[admin]\nport = 1\nmax_listeners = 3\n",
    }
    file.write_text(content[suffix])
    token_file.write_text(f"  {TOKEN}\n")
    token_file.chmod(0o600)
    environment = {"KVTIDE_ADMIN_TOKEN": "x" * 20, "KVTIDE_ADMIN_READ_TOKEN": READ_TOKEN}
    options = {"host": None, "port": 2, "show_text": True}
    chosen = serve_config(file, options, token_file=token_file, read_token_file=None, environment=environment)
    assert chosen.engine == EngineConfig(ttl_s=9)
    assert chosen.admin == AdminConfig(
        port=2, max_listeners=3, show_text=True, token=TOKEN, read_token=READ_TOKEN
    )
    assert caplog.records == [], "only the owner can read the file"


def test_nothing_said_is_the_defaults():
    chosen = serve_config(
        None, {}, token_file=None, read_token_file=None, environment={"KVTIDE_ADMIN_TOKEN": ""}
    )
    assert (chosen.engine, chosen.admin) == (EngineConfig(), AdminConfig())


# ---- the page that documents it --------------------------------------------------------------------------------------


def test_the_documented_file_is_one(tmp_path):
    text = (ROOT / "docs" / "serve.md").read_text()
    example, small = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "kvtide.toml"
    file.write_text(example)
    chosen = serve_config(file, {}, token_file=None, read_token_file=None, environment={})
    assert chosen.engine == config_from(tomllib.loads(example)["engine"])
    assert chosen.engine.disk_bytes == 64 << 30
    assert chosen.admin.max_requests_per_s == 50
    file.write_text(small)
    chosen = serve_config(file, {}, token_file=None, read_token_file=None, environment={})
    assert (chosen.engine.host_bytes, chosen.engine.device_bytes) == (256 << 20, 64 << 20)


def test_the_documented_options_are_the_commands():
    text = (ROOT / "docs" / "serve.md").read_text()
    from typer.main import get_command

    from tiering.cli.app import app

    known = {name for param in get_command(app).commands["serve"].params for name in param.opts}
    named = {name for name in re.findall(r"--[a-z-]+[a-z]", text) if name != "--help"}
    assert named <= known
    assert {"--host", "--port", "--config", "--token-file", "--read-token-file", "--show-text"} <= named
