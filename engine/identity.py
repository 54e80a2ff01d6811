"""All that must be equal for two prompts to share KV, as a Namespace."""

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from kvstore.block import BlockLayout, Namespace

from . import attention, lanes
from .batch import MIN_ROWS, MIN_ROWS_PER_THREAD
from .calls import QUERY_MULTIPLE
from .config import TILE_TOKENS, EngineConfig
from .convert import default_cache_dir
from .dtypes import dtype_name
from .model import Model
from .supported import check_deterministic

_DIGESTS = ".kvtide-digests.json"
_TOKENIZER_FILES = ("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "vocab.*", "merges.txt")
_WEIGHT_FILES = ("*.safetensors", "*.bin")  # the first kind that is there

# Bookkeeping of transformers that says nothing about what is computed.
_CONFIG_NOISE = {"transformers_version", "architectures", "dtype", "torch_dtype"}


def identity(
    model: Model, layout: BlockLayout, config: EngineConfig, *, cache_dir: Path | None = None
) -> Namespace:
    """The namespace of KV that `model` computes for blocks of `layout` under `config`.

    Two models share one only if every byte of their weights is equal. Reads all weight files the first time; their
    digests are kept beside them (below cache_dir where that cannot be written; None is ~/.cache/kvtide) and are
    trusted while a file's path, size, modification time and inode stay the same. A model made in memory is digested
    each time, unless it says what made it (`Model.made_by`): random weights on a GPU, whose gigabytes would have to come
    to the host to be read. In deterministic mode the namespace also holds what the bits of a result depend on. Raises ValueError
    for a directory without weights, a file that changes while it is read, and a model that deterministic mode is not
    offered for.
    """
    source = model.source
    facts = {
        "weights": _memory_digest(model) if source is None else _weights_digest(source, cache_dir),
        "tokenizer": "none" if source is None else _digest_files(source, _TOKENIZER_FILES, cache_dir),
        "config": _config_digest(model.hf.config),
        "architecture": model.architecture,
        "compute_dtype": dtype_name(model.dtype),
        "kv_dtype": layout.dtype,
        "layout": ",".join(map(str, layout.shape)),
        "quantisation": "none",
        "adapter": "none",
        "transformers": transformers.__version__,
        "mode": "deterministic" if config.deterministic else "fast",
    }
    if config.deterministic:
        check_deterministic(model.shape)
        facts |= compute_fingerprint(model.device)
    return Namespace.of(facts)


def compute_fingerprint(device: torch.device) -> dict[str, str]:
    """What the last bits of a result depend on besides the model, as measured.

    Not the chunk size: a tile's bits depend on where it lies, and not on where chunks are cut.
    """
    on_cpu = device.type == "cpu"
    return {
        "compute_device": _cpu_name() if on_cpu else torch.cuda.get_device_name(device),
        "compute_threads": str(torch.get_num_threads()) if on_cpu else "0",
        "compute_torch": torch.__version__,
        "compute_attention": f"{attention.NAME},{lanes.version(device)},{TILE_TOKENS},{QUERY_MULTIPLE},{MIN_ROWS},{MIN_ROWS_PER_THREAD}",
    }


def _cpu_name() -> str:
    """Vendor, family, model and instruction set: what torch's libraries choose their kernels by."""
    wanted = ("vendor_id", "cpu family", "model")
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                found.setdefault(name.strip(), value.strip())
    except OSError:  # no Linux: the instruction set has to do
        pass
    return " ".join([*(found.get(name, "?") for name in wanted), torch.backends.cpu.get_cpu_capability()])


def _config_digest(config: Any) -> str:
    facts = {
        name: value
        for name, value in config.to_dict().items()
        if not name.startswith("_") and name not in _CONFIG_NOISE
    }
    return _sha256(json.dumps(facts, sort_keys=True, default=str).encode())


def _memory_digest(model: Model) -> str:
    if model.made_by is None:
        return _state_digest(model.hf)
    return _sha256(json.dumps(["made by", model.made_by], sort_keys=True).encode())


def _state_digest(hf: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(hf.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _weights_digest(source: Path, cache_dir: Path | None) -> str:
    for pattern in _WEIGHT_FILES:
        if any(source.glob(pattern)):
            return _digest_files(source, (pattern,), cache_dir)
    raise ValueError(f"no weight files in {source}: expected *.safetensors or *.bin")


def _digest_files(source: Path, patterns: Iterable[str], cache_dir: Path | None) -> str:
    """One digest over the names and contents of the files that match, in order of name."""
    names = sorted({path.name for pattern in patterns for path in source.glob(pattern)})
    known = _read_digests(source, cache_dir)
    fresh = {name: _file_digest(source / name, known.get(name)) for name in names}
    if any(known.get(name) != entry for name, entry in fresh.items()):
        _write_digests(source, cache_dir, known | fresh)
    return _sha256(json.dumps([[name, fresh[name]["sha256"]] for name in names]).encode())


def _file_digest(path: Path, known: Any) -> dict[str, str | int]:
    before = _facts(path)
    if isinstance(known, dict) and {name: known.get(name) for name in before} == before:
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _facts(path) != before:
        raise ValueError(f"{path} changed while it was read; wait until it is written completely")
    return {**before, "sha256": digest}


def _facts(path: Path) -> dict[str, str | int]:
    stat = path.stat()
    return {
        "path": str(path.resolve()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "inode": stat.st_ino,
    }


def _digest_places(source: Path, cache_dir: Path | None) -> tuple[Path, Path]:
    """Beside the weights, and where to go if that cannot be written."""
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    return source / _DIGESTS, cache_dir / "digests" / f"{_sha256(str(source.resolve()).encode())}.json"


def _read_digests(source: Path, cache_dir: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place in _digest_places(source, cache_dir):
        try:
            content = json.loads(place.read_text())
        except (OSError, ValueError):  # absent, or not ours: digest again
            continue
        found |= content if isinstance(content, dict) else {}
    return found


def _write_digests(source: Path, cache_dir: Path | None, digests: dict[str, Any]) -> None:
    """Keep the digests at the first place that takes them; it is fine if none does."""
    for place in _digest_places(source, cache_dir):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # Renamed into place: another process reads either the old file or the new one.
            with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
                json.dump(digests, file, indent=1)
            Path(file.name).replace(place)
        except OSError:
            continue
        return


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
