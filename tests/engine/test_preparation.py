"""What is compiled is asked for while weights are read: of what a model and a configuration need, and without numba."""

import subprocess
import sys
import threading
from typing import Any

import pytest

from engine import preparation
from engine.config import EngineConfig
from engine.native import registers
from engine.supported import shape_of
from kvstore.errors import StoreFailed
from tests.engine.families import CASES
from tiering.kernels import kernels as core_kernels

ALL = {"attention", "core", "layers", "disk"}


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    found: list[str] = []

    def refuse(name: str) -> Any:
        def ask(*_: object, **__: object) -> None:
            found.append(name)
            raise StoreFailed("it cannot be compiled")  # which is for whoever needs it

        return ask

    monkeypatch.setattr(preparation, "are_kept", lambda _: False)
    monkeypatch.setattr("kvstore.disk.compiled.load_code", refuse("disk"))
    monkeypatch.setattr(preparation, "core_loops", refuse("core"))
    monkeypatch.setattr(preparation.lanes, "prepare", refuse("attention"))
    monkeypatch.setattr(preparation.decoder, "prepare", refuse("layers"))
    return found


@pytest.mark.skipif(registers()[0] == 0, reason="this processor has no registers for it")
@pytest.mark.parametrize(
    ("family", "settings", "wanted"),
    [
        ("llama", {}, ALL),
        ("llama", {"disk_path": None}, ALL - {"disk"}),
        ("llama", {"disk_compression": "off"}, ALL - {"disk"}),
        ("llama", {"kv_dtype": "float16"}, ALL - {"attention"}),
        ("phi3", {}, ALL - {"layers"}),
    ],
)
def test_what_a_model_needs_is_asked_for_at_once(family, settings, wanted, asked, tmp_path):
    config = EngineConfig(**{"device": "cpu", "dtype": "float32", "disk_path": tmp_path, **settings})
    shape = shape_of(CASES[family].config(head_dim=64).to_dict())
    others = set(threading.enumerate())
    preparation.prepare_beside(shape, config, config.resolve())
    for thread in set(threading.enumerate()) - others:
        thread.join()
    assert sorted(asked) == sorted(wanted)


@pytest.mark.parametrize("is_kept", [True, False])
def test_of_what_is_kept_a_disks_is_not_loaded_before_the_disk_is_opened(monkeypatch, tmp_path, is_kept):
    """With the import of what opens it, it would take Python's lock from what reads weights. What is not kept is compiled meanwhile."""
    begun = []
    monkeypatch.setattr(preparation, "_begin", begun.append)
    monkeypatch.setattr(preparation, "are_kept", lambda _: is_kept)
    config = EngineConfig(device="cpu", dtype="float32", disk_path=tmp_path)
    preparation.prepare_beside(
        shape_of(CASES["llama"].config(head_dim=64).to_dict()), config, config.resolve()
    )
    of_disk = [one for one in begun if getattr(one, "func", None) is preparation._compile_for_disk]
    assert [one.args for one in of_disk] == ([] if is_kept else [(2,)])
    assert core_kernels in begun


def test_what_loads_kernels_imports_neither_numba_nor_torch():
    assert _imported("import engine.native") == []


def test_an_index_with_kernels_that_are_kept_imports_neither():
    core_kernels()  # or whoever comes first has them compiled
    program = (
        "from kvstore.block import KEY_BYTES; from tiering.index import Index; from tiering.index_config import IndexConfig;"
        "Index(IndexConfig(block_tokens=4, device_slots=8, host_slots=8), bytes(KEY_BYTES))"
    )
    assert _imported(program) == []
    assert _imported("import tiering.cli.simulate as cli; cli.kernels()") == []


def _imported(program: str) -> list[str]:
    found = f"{program}\nimport sys; print(*sorted({{'numba', 'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    return done.stdout.split()
