"""GGUF files, turned once into directories that load in a moment: config.json, safetensors in float32, tokenizer."""

import fcntl
import hashlib
import importlib.util
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .gguf_header import GgufHeader, read_header
from .sizes import available_memory_bytes, format_bytes
from .supported import shape_of

_VERSION = 1  # grows when what a conversion writes changes
_DONE = "model.safetensors"
_DONE_SHARDED = "model.safetensors.index.json"

# As measured: reading dequantises, and then every parameter is written as float32.
_PARAMETERS_A_SECOND = 20e6
_FIXED_S = 15.0
_LONG_S = 60.0
_COPIES_OF_THE_LARGEST = 3

Tell = Callable[[str], None]

_log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Where converted models and digests go unless told otherwise."""
    return Path.home() / ".cache" / "kvtide"


def converted(source: Path, cache_dir: Path | None = None, tell: Tell | None = None) -> Path:
    """The directory that a GGUF file was converted into, converting it if that was not done before.

    A file that is changed or moved is converted again, into another directory. See `convert_once`, also for what is
    raised.
    """
    source = source.resolve()
    stat = source.stat()
    facts = [_VERSION, str(source), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    return convert_once(source, cache_dir / "gguf" / f"{source.stem}-{digest}", tell)


def convert_once(source: Path, target: Path, tell: Tell | None = None) -> Path:
    """Convert a GGUF file into the directory `target`, unless it is there; return `target`.

    Processes that want it at the same time wait for the first. `tell` is told of it in sentences, with size and
    expected time; without it they are logged, as a warning where it takes more than a minute. Raises NotServed for a
    model that is not served, ValueError for a file that cannot be read, a package that is missing, or where memory or
    disk do not suffice, all before anything is converted, and OSError where `target` cannot be written.
    """
    if is_converted(target):
        return target
    header = read_header(source)
    shape_of(header.config())
    _check_packages()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f"{target.name}.lock")):
        if not is_converted(target):
            _check_room(source, header, target)
            _announce(source, header, target, tell)
            start_s = time.monotonic()
            _convert(source, header, target)
            (tell or _log.info)(f"{source.name} is converted, in {time.monotonic() - start_s:.0f} s.")
    return target


def is_converted(target: Path) -> bool:
    """Whether a conversion into this directory was finished."""
    return (target / _DONE).exists() or (target / _DONE_SHARDED).exists()


def _check_packages() -> None:
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ValueError(f"converting a GGUF file needs the package {needed}; run `pip install {needed}`")


def _weight_bytes(header: GgufHeader) -> int:
    """Of all weights in float32."""
    return 4 * sum(header.num_elements.values())


def _check_room(source: Path, header: GgufHeader, target: Path) -> None:
    needed = _weight_bytes(header)
    memory = needed + 4 * _COPIES_OF_THE_LARGEST * max(header.num_elements.values(), default=0)
    if memory > (available := available_memory_bytes()):
        raise ValueError(
            f"converting {source.name} takes {format_bytes(memory)} of memory and {format_bytes(available)} are free; "
            "convert it on a larger machine and copy the directory, or take a smaller model"
        )
    if needed > (free := shutil.disk_usage(target.parent).free):
        raise ValueError(
            f"converting {source.name} writes {format_bytes(needed)} and {target.parent} has {format_bytes(free)} left; "
            "make room there"
        )


def _announce(source: Path, header: GgufHeader, target: Path, tell: Tell | None) -> None:
    size = _weight_bytes(header)
    expected_s = _FIXED_S + size / 4 / _PARAMETERS_A_SECOND
    takes = "half a minute" if expected_s < 40 else "a minute" if expected_s <= _LONG_S else ""
    takes = takes or f"{expected_s / 60:.0f} minutes or more"
    tell = tell or (_log.warning if expected_s > _LONG_S else _log.info)
    tell(
        f"Converting {source.name} ({format_bytes(source.stat().st_size)}) into {target}: {format_bytes(size)} of "
        f"float32; this takes about {takes}, once."
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; it ends with the process, whatever happens."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(source: Path, header: GgufHeader, target: Path) -> None:
    model = _fresh_model(source, header)
    tokenizer = None
    if header.has_tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    # Written beside the target and renamed, so that a half-written model is never found.
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        model.save_pretrained(scratch)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        if target.exists():  # left by something that was not us: it lacks the weights
            shutil.rmtree(target)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fresh_model(source: Path, header: GgufHeader) -> Any:
    """The model with its weights. One loaded from GGUF refuses to be saved; a fresh one that takes them over does not."""
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = (
        AutoModelForCausalLM  # with output_loading_info it returns two things, which its types do not say
    )
    try:
        loaded, info = auto.from_pretrained(
            str(source.parent), gguf_file=source.name, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:
        raise ValueError(
            f"{source} has weights of other sizes than transformers makes of its header"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{source} lacks {len(missing)} weights of the model, such as {missing[0]}")
    in_model, in_file = sum(each.numel() for each in loaded.parameters()), sum(header.num_elements.values())
    if in_model != in_file:
        raise ValueError(f"{source} holds {in_file} parameters, of which transformers reads {in_model}")
    facts = loaded.config.to_dict()
    facts.pop("quantization_config", None)
    with torch.device("meta"):  # no memory for weights that are replaced at once
        model = type(loaded)(type(loaded.config)(**facts))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model
