"""What lies at a place that a user names as a model, looked at before anything is loaded. Needs no torch."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .gguf_header import read_header
from .supported import NotServed, shape_of

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("*.safetensors", "*.bin")
_LFS = b"version https://git-lfs"
_CONNECT_S = 3.0
"""For each of the hub's addresses."""

# By the names of huggingface_hub's errors, which transformers wraps in an OSError of many lines.
_HUB_ERRORS: Mapping[str, str] = {
    "GatedRepoError": "it is gated: accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`",
    "RepositoryNotFoundError": "there is neither a directory of this name nor a model on the hub that you may see; "
    "check the spelling, and log in with `hf auth login` if it is private",
    "LocalEntryNotFoundError": "the hub cannot be reached and no copy is in its cache; where there is a network run "
    "`hf download {name} --local-dir DIR`, and give DIR",
}
# httpx's, which goes by another name from release to release
_NO_WAY_THERE = ("ConnectError", "ConnectTimeout")
_HUB_ERRORS = {
    **_HUB_ERRORS,
    **dict.fromkeys(("OfflineModeIsEnabled", *_NO_WAY_THERE), _HUB_ERRORS["LocalEntryNotFoundError"]),
}


class NotLoaded(ValueError):
    """A model that cannot be loaded; the sentence says what to do."""

    def __init__(self, name: object, why: str) -> None:
        super().__init__(f"cannot load the model {str(name)!r}: {why}")


def local_place(name: str | Path) -> Path | None:
    """The file or directory that `name` means; None for what can only be a name on the hub.

    Raises NotLoaded for a path at which there is nothing, and for what is neither a name nor a path.
    """
    if not isinstance(name, str | os.PathLike):
        raise NotLoaded(name, 'give "demo", a directory, a GGUF file, a name on the hub, or a Model')
    path = Path(name).expanduser()
    if path.exists():
        return path
    text = str(name)
    if text.startswith(("/", ".", "~")) or text.endswith((".gguf", ".json")) or text.count("/") > 1:
        raise NotLoaded(name, "there is no such file or directory")
    return None


def checked_place(name: str | Path) -> Path | None:
    """`local_place`, where what is there has been looked at as far as can be seen: raises as `gguf_at` and `check_directory` do."""
    place = local_place(name)
    if place is not None and gguf_at(place) is None:
        check_directory(place)
    return place


def gguf_at(place: Path) -> Path | None:
    """The GGUF file that `place` is, or that lies alone in it; None where a config.json says what to load.

    Raises NotLoaded for a directory with several.
    """
    if place.is_file():
        return place if place.suffix == ".gguf" else None
    if (place / _CONFIG).exists():
        return None
    found = sorted(place.glob("*.gguf"))
    if len(found) > 1:
        raise NotLoaded(place, f"it holds {len(found)} GGUF files; name one, such as {found[0]}")
    return found[0] if found else None


def config_at(place: Path) -> Mapping[str, Any]:
    """The config.json of a directory, a config.json itself, or what a GGUF says in its stead.

    Raises NotLoaded for what is none of these, and NotServed as a GGUF's header does.
    """
    if (gguf := gguf_at(place)) is not None:
        try:
            return read_header(gguf).config()
        except NotServed:
            raise
        except ValueError as error:
            raise NotLoaded(place, str(error)) from error
    file = place / _CONFIG if place.is_dir() else place
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotLoaded(
            place,
            "it holds neither a config.json nor a GGUF file; give the directory of a transformers model",
        ) from error
    except (ValueError, OSError) as error:
        raise NotLoaded(place, f"{file.name} cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise NotLoaded(place, f"{file.name} holds no object of settings")
    return config


def check_directory(place: Path) -> None:
    """Refuse a directory whose config.json or weights will not do, before they are read.

    Raises NotServed for a model that is not served, NotLoaded for weights that are absent or not all there.
    """
    try:
        shape_of(config_at(place))
    except (NotServed, NotLoaded):
        raise
    except ValueError as error:
        raise NotLoaded(place, str(error)) from error
    found = [path for pattern in _WEIGHTS for path in sorted(place.glob(pattern))]
    if not found:
        raise NotLoaded(
            place,
            "it holds a config.json and no weights (*.safetensors); if the model is gated, accept its terms on the hub, "
            "then run `hf auth login` and `hf download NAME --local-dir DIR`",
        )
    if pointers := [path.name for path in found if _is_pointer(path)]:
        raise NotLoaded(
            place,
            f"{pointers[0]} is a Git LFS pointer and not the weights; run `git lfs pull` in that directory",
        )
    if absent := sorted(_indexed(place) - {path.name for path in found}):
        raise NotLoaded(
            place,
            f"{len(absent)} files of its weights are absent, such as {absent[0]}; download it again",
        )


def check_way_to_hub(name: str) -> None:
    """Raise NotLoaded, within seconds, if the hub is needed for a model and nobody answers there.

    transformers would ask for half a minute. Whoever answers slowly is left to it, and so is what the answer says.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, _CONFIG), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, _CONFIG), timeout=_CONNECT_S)
    except Exception as error:
        if type(error).__name__ in _NO_WAY_THERE:
            raise why_not_loaded(name, error) from error


def why_not_loaded(name: object, error: Exception) -> NotLoaded:
    """One sentence for what transformers raises for gated, absent, unreachable and unreadable models."""
    cause: BaseException | None = error
    while cause is not None:
        if (why := _HUB_ERRORS.get(type(cause).__name__)) is not None:
            return NotLoaded(name, why.format(name=name))
        cause = cause.__cause__ or cause.__context__
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return NotLoaded(
        name,
        f"give a directory with config.json and safetensors weights, or a name on the hub ({first})",
    )


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def _indexed(place: Path) -> set[str]:
    """The files that the weights are spread over, if there is an index of them."""
    try:
        return set(json.loads((place / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, AttributeError) as error:
        raise NotLoaded(place, f"{_INDEX} cannot be read; download it again") from error
