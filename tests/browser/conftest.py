"""A browser, and what it looks at: the generated subject, or an engine that runs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvstore.admin import AdminServer
from tests.browser.chromium import Chromium, Tab, executable
from tests.browser.generated import Generated
from tests.browser.served import served

if TYPE_CHECKING:
    from engine.engine import Engine

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if executable() is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no Chromium: apt-get install chromium"))


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots are kept: KVTIDE_SCREENSHOTS names the directory."""
    return Path(os.environ.get("KVTIDE_SCREENSHOTS") or ROOT / "build" / "screenshots")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    program = executable()
    assert program is not None, "tests are skipped without"
    with Chromium(program) as browser:
        yield browser


@pytest.fixture(scope="session")
def generated() -> Iterator[AdminServer]:
    """An endpoint over 100,000 runs of blocks."""
    with served(Generated()) as server:
        yield server


@pytest.fixture
def small() -> Iterator[Callable[..., AdminServer]]:
    """Opens endpoints over 400 runs, which a test may change, with settings of its choice."""
    opened = []

    def open_one(subject: object | None = None, **settings: object) -> AdminServer:
        context = served(Generated(400) if subject is None else subject, **settings)
        opened.append(context)
        return context.__enter__()

    yield open_one
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def live_engine(demo_dir, tmp_path_factory) -> Iterator["Engine"]:
    """An engine on the demo's model, with room for a few prompts on the device, that has served some."""
    from tests.browser.traffic import serve_some
    from tests.engine.engines import open_engine

    disk = tmp_path_factory.mktemp("disk")
    sizes = {"device_bytes": "24MiB", "host_bytes": "32MiB", "disk_bytes": "128MiB", "max_model_len": 1024}
    with open_engine(demo_dir, disk, **sizes) as engine:
        serve_some(engine)
        yield engine


@pytest.fixture
def open_tab(chromium) -> Iterator[Callable[..., Tab]]:
    """Opens tabs. At the end each must have shown no error but what the test allows, and asked nobody else."""
    tabs: list[tuple[Tab, tuple[str, ...]]] = []

    def open_one(url: str, *, width: int = 1440, allow: tuple[str, ...] = (), dark: bool = False) -> Tab:
        tab = chromium.tab(width)
        tab.prefer(dark=dark)
        tabs.append((tab, allow))
        tab.open(url)
        return tab

    yield open_one
    for tab, allow in tabs:
        errors = [line for line in tab.console if not any(allowed in line for allowed in allow)]
        assert not errors, errors
        origin = tab.js("location.origin")
        elsewhere = [url for url in tab.requests if not url.startswith((origin + "/", "data:", "about:"))]
        assert not elsewhere, elsewhere
        assert tab.js("window.hacked === undefined"), "what was data has run"
