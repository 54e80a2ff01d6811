"""What `kvtide serve` is told: a file, options, and tokens, which lie in neither."""

import json
import logging
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from engine.config import EngineConfig, config_from
from kvstore.admin import AdminConfig
from tiering.cli.parsing import parsed

TOKEN: Final = "KVTIDE_ADMIN_TOKEN"  # noqa: S105 - the name of a variable
READ_TOKEN: Final = "KVTIDE_ADMIN_READ_TOKEN"  # noqa: S105 - likewise

_SECTIONS: Final = ("engine", "admin")
_TOKENS: Final = ("token", "read_token")
_FORMATS: Final = {".toml": tomllib.loads, ".json": json.loads}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """All of it, checked."""

    engine: EngineConfig
    admin: AdminConfig


def serve_config(
    file: Path | None,
    options: Mapping[str, Any],
    *,
    token_file: Path | None,
    read_token_file: Path | None,
    environment: Mapping[str, str] = os.environ,
) -> ServeConfig:
    """What is to be served, and how.

    `options`: of AdminConfig, in place of what the file says; those that are None are not given. A token comes from its file, else
    from the environment. Raises ValueError, with a sentence, for what cannot be meant.
    """
    sections = {} if file is None else _sections(file)
    admin: dict[str, Any] = {
        **sections.get("admin", {}),
        **{name: value for name, value in options.items() if value is not None},
    }
    admin["token"] = _token(token_file, environment.get(TOKEN))
    admin["read_token"] = _token(read_token_file, environment.get(READ_TOKEN))
    return ServeConfig(engine=config_from(sections.get("engine", {})), admin=AdminConfig(**admin))


def _sections(file: Path) -> dict[str, dict[str, Any]]:
    """The sections of a configuration file, their names checked."""
    loads = _FORMATS.get(file.suffix.lower())
    if loads is None:
        raise ValueError(f"{file} is named neither .toml nor .json: how is it to be read?")
    found = parsed(file, str(file), file.suffix[1:].upper(), loads)
    if not isinstance(found, dict) or not all(isinstance(section, dict) for section in found.values()):
        raise ValueError(f"{file} must have sections, {_listed(_SECTIONS)}, and nothing outside of them")
    _check_names(file, "section", found, _SECTIONS)
    admin = found.get("admin", {})
    if secret := next((name for name in _TOKENS if name in admin), None):
        raise ValueError(
            f"{file} holds {secret!r}, which belongs in a file of its own (--{secret.replace('_', '-')}-file) or in the "
            f"environment"
        )
    _check_names(
        file, "setting of [admin]", admin, [f.name for f in fields(AdminConfig) if f.name not in _TOKENS]
    )
    _check_names(file, "setting of [engine]", found.get("engine", {}), [f.name for f in fields(EngineConfig)])
    return found


def _check_names(
    file: Path, what: str, found: Mapping[str, Any], known: "list[str] | tuple[str, ...]"
) -> None:
    if unknown := sorted(found.keys() - set(known)):
        raise ValueError(f"{file}: unknown {what} {unknown[0]!r}; known are {', '.join(known)}")


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(f"[{name}]" for name in names)


def _token(file: Path | None, fallback: str | None) -> str | None:
    """What a token file holds; without one, what the environment does. The sentences say nothing of it."""
    if file is None:
        return fallback or None
    try:
        token = file.read_text("ascii").strip()
        mode = file.stat().st_mode
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{file} must hold a token of ASCII characters") from None
    if not token:
        raise ValueError(f"{file} is empty: it must hold a token")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s can be read by others than its owner; to change that: chmod 600 %s", file, file)
    return token
