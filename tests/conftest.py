"""What all tests share: where GPU cases are skipped, how hypothesis draws, tokenizers, and the demo model's directory."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

# Set before torch is imported: spinning OpenMP threads take the second core from the test beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if importlib.util.find_spec("hypothesis") is not None:  # absent where only the GPU cases are run
    from hypothesis import HealthCheck, settings

    # The same examples on every machine, and no clock: a slow machine is not a failure. HYPOTHESIS_PROFILE=search draws
    # new examples, ten times as many.
    too_slow = [HealthCheck.too_slow]
    settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=too_slow)
    settings.register_profile("search", max_examples=1000, deadline=None, suppress_health_check=too_slow)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the cases marked gpu where there is no CUDA device; torch is imported only if there are any."""
    gpu = [item for item in items if item.get_closest_marker("gpu") is not None]
    if gpu and not _has_cuda():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """What blocks are encoded and decoded by. In a fresh tree it takes half a minute to be compiled: a first write would take longer
    than a disk is waited for, and its blocks would stay where they are.
    """
    from kvstore.disk.compiled import load_code

    for itemsize in (2, 4):
        load_code(itemsize)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A token for each byte, a few words, and a chat template."""
    pytest.importorskip("transformers")
    from tests.tokenizers import (
        byte_tokenizer,
    )  # here: other tools take the tests of one package, and this file

    return byte_tokenizer()


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted demo model. KVTIDE_CACHE names a directory that keeps it from one session to the next."""
    pytest.importorskip("gguf")
    from engine.demo_model import demo_model_dir

    kept = os.environ.get("KVTIDE_CACHE")
    try:
        return demo_model_dir(Path(kept) if kept else None)
    except OSError:  # a home that cannot be written
        return demo_model_dir(tmp_path_factory.mktemp("demo"))
