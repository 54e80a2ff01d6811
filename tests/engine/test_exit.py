"""A program may end while its engine computes."""

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.engine.engines import BLOCK, engine_on, tokens

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
    import sys
    from pathlib import Path
    from engine import SamplingParams
    from tests.engine.engines import open_engine, tokens

    engine = open_engine(Path(sys.argv[1]), Path(sys.argv[2]))
    engine.warm(tokens(0, 64))
    stream = engine.stream(tokens(1, 20), SamplingParams(max_tokens=900, ignore_eos=True))
    next(stream)
"""


def test_an_engine_that_computes_when_the_interpreter_ends_is_closed(tiny_llama_dir, tmp_path):
    """Without an abort, and with what it had cached on disk."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), tiny_llama_dir, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    with engine_on(tiny_llama_dir, tmp_path) as engine:
        assert engine.lookup([*tokens(0, 64), 1])["disk"] == 64 // BLOCK * BLOCK
