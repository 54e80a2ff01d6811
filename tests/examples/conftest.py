"""The demo model, where programs look for it."""

from pathlib import Path

import pytest


@pytest.fixture
def demo_at_hand(demo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that ask for "demo" find it converted."""
    monkeypatch.setattr("engine.demo_model.default_cache_dir", lambda: demo_dir.parent)
