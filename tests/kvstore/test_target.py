"""Code is for the processor as LLVM sees it, and for no more of it than numba may use."""

import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from numba.core import config

from kvstore import target as target_module
from kvstore.target import target


@pytest.fixture
def boot(tmp_path, monkeypatch) -> Path:
    """A file that says since when this system runs, and a place of its own for what is kept."""
    boot = tmp_path / "boot"
    boot.write_text("today")
    monkeypatch.setattr(target_module, "_BOOT", boot)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    return boot


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How often LLVM was."""
    found, ask = [], llvm.get_host_cpu_name

    def count() -> str:
        found.append(1)
        return ask()

    monkeypatch.setattr(llvm, "get_host_cpu_name", count)
    return found


def test_llvm_is_asked_once_since_the_system_was_started(boot, asked):
    told = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    for _ in range(2):
        assert target_module._processor() == told
    assert len(asked) == 2
    boot.write_text("tomorrow")
    assert target_module._processor() == told
    assert len(asked) == 3
    assert len(list((boot.parent / "kept").iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda kept: kept[:-1], lambda kept: kept.replace(b"+", b"-")])
def test_of_another_processor_nothing_is_believed(boot, asked, damage, monkeypatch, tmp_path):
    """Nor what is damaged, nor where the system does not say since when it runs."""
    told = target_module._processor()
    [kept] = (tmp_path / "kept").iterdir()
    kept.write_bytes(damage(kept.read_bytes()))
    assert target_module._processor() == told
    other = tmp_path / "processors"
    other.write_text("model: another\ncpu MHz: 1\n\nmodel: this one")
    monkeypatch.setattr(target_module, "_PROCESSORS", other)
    assert target_module._processor() == told
    other.write_text("model: another\ncpu MHz: 2\n\nmodel: a third")
    assert target_module._processor() == told
    assert len(asked) == 3
    boot.unlink()
    assert target_module._processor() == told
    assert len(asked) == 4


def test_what_is_known_is_known_without_llvm():
    target()
    program = "import sys; from kvstore.target import target; target(); print('llvmlite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("ENABLE_AVX", 0), ("DISABLE_JIT", 1), ("CPU_FEATURES", ""), ("CPU_FEATURES", "+sse2,-avx2")],
)
def test_it_is_compiled_for_no_more_than_numba_compiles_for(name, value, monkeypatch):
    """Of instructions that it may not use LLVM ends the process."""
    monkeypatch.setenv(f"NUMBA_{name}", str(value))
    monkeypatch.setattr(config, name, value)
    found = target.__wrapped__()
    features = {feature[1:] for feature in found.features.split(",") if feature.startswith("+")}
    assert found.may_compile == (name != "DISABLE_JIT")
    assert not found.may_compile or not {"avx2", "avx512f", "avx512bf16"} & features
    assert name in found.settings


def test_numba_is_asked_where_a_file_has_settings_of_its(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".numba_config.yaml").write_text("opt: 1\n")
    assert "opt: 1" in target.__wrapped__().settings
