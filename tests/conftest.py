"""What all tests share: where GPU cases are skipped, and how hypothesis draws."""

import importlib.util
import os

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
