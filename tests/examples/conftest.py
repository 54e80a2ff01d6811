"""The demo model, as the tests of the engine have it."""

from pathlib import Path

import pytest

from tests.engine.conftest import demo_dir

__all__ = ["demo_dir"]


@pytest.fixture
def demo_at_hand(demo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that ask for "demo" find it converted."""
    monkeypatch.setattr("engine.demo_model.default_cache_dir", lambda: demo_dir.parent)
