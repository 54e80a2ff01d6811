"""The command line starts at once: what a verb needs is imported by that verb."""

import subprocess
import sys

import pytest

HEAVY = {
    *("engine", "torch", "transformers", "tokenizers", "numpy"),
    *("aiohttp", "asyncio", "msgspec", "prometheus_client"),
    *("lmdb", "zstandard", "xxhash", "pynvml", "cupy", "numba", "llvmlite"),
}
"""A tenth of a second each, or more, but for the small ones, which need numpy or asyncio as a rule."""

ASK = """
import sys
from tiering.cli import main
sys.argv = ["kvtide", *sys.argv[1:]]
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("verb", [(), ("serve",), ("plan",)], ids="-".join)
def test_help_imports_nothing_that_only_work_needs(verb):
    done = subprocess.run(
        [sys.executable, "-c", ASK, *verb, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: kvtide" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "typer" in loaded, "the modules were not told"
    assert not loaded & HEAVY
    assert len(done.stderr.split()) < 450, "rich and typer are three hundred modules with what they need"
