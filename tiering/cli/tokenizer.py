"""The tokenizer that a command is given: a directory, a tokenizer.json, or the demo model's. No model is loaded."""

from pathlib import Path
from typing import Any

_INSTALL = "install it with `pip install kvtide[engine]`, or `pip install transformers jinja2` alone"


def load_tokenizer(place: str) -> Any:
    """Of `transformers` where there is a tokenizer_config.json, else of `tokenizers`. Raises ValueError with a sentence."""
    if place == "demo":
        from engine.demo_model import demo_model_dir

        return _of_directory(demo_model_dir())
    path = Path(place)
    if not path.exists():
        raise ValueError(f"{place} is not there: --tokenizer takes a directory, a tokenizer.json, or demo")
    if path.is_file():
        return _of_file(path)
    if (path / "tokenizer_config.json").exists():
        return _of_directory(path)
    if (path / "tokenizer.json").exists():
        return _of_file(path / "tokenizer.json")
    raise ValueError(f"there is neither a tokenizer_config.json nor a tokenizer.json in {place}")


def _of_directory(path: Path) -> Any:
    try:
        import jinja2  # noqa: F401 - transformers asks for it only when a template runs
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(f"a tokenizer directory needs the package {error.name}: {_INSTALL}") from error
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers and what it calls raise whatever they like over broken files
        raise ValueError(f"the tokenizer in {path} cannot be loaded: {_first_line(error)}") from error


def _of_file(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError(f"a tokenizer.json needs the package tokenizers: {_INSTALL}") from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # that is what it raises, for a broken file as for one that is not there
        raise ValueError(f"{path} is no tokenizer.json: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
