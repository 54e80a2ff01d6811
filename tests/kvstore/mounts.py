"""Commands that see a file system of their own, mounted for them alone."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNSHARE = shutil.which("unshare")


def run_mounted(mount: str, folder: Path, command: list[str]) -> str:
    """What a command says that runs after `mount`, a line of shell in which "$0" is the folder. Skips where none can be."""
    try_to = f'{mount} && echo mounted && exec "$@"'
    if UNSHARE is None:
        pytest.skip("there is no unshare(1)")
    done = subprocess.run(
        [UNSHARE, "--map-root-user", "--mount", "sh", "-c", try_to, str(folder), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    if not done.stdout.startswith("mounted"):
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    return done.stdout
