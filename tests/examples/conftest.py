"""The demo model, as the tests of the engine have it."""

from tests.engine.conftest import demo_dir

__all__ = ["demo_dir"]
