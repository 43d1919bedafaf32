"""Values of settings: read from flags, environment variables and the configuration file, in this order."""

import argparse
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import spellings
from .errors import CommandError
from .settings.setting import ENV_PREFIX, Setting
from .settings.table import SETTINGS

_BY_KEY = {setting.key: setting for setting in SETTINGS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag, its value left as text; one that is not given is left out of the namespace."""
    parser.add_argument("model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help=_BY_KEY["model"].help)
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="TOML file with any of these keys")
    for setting in SETTINGS[1:]:
        _add_flag(parser, setting)
    spellings.add_arguments(parser)


def _add_flag(parser: argparse.ArgumentParser, setting: Setting) -> None:
    options: dict[str, Any] = {"dest": setting.key, "default": argparse.SUPPRESS, "help": _help(setting)}
    if setting.is_switch:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = setting.metavar
    if setting.many:
        options.update(action="extend" if setting.nargs else "append", nargs=setting.nargs)
    parser.add_argument(f"--{setting.name}", **options)


def _help(setting: Setting) -> str:
    default = setting.shown.replace("`", "") or setting.default
    return setting.help + (f" (default: {default})" if default not in (None, "") and not setting.is_switch else "")


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return every setting's value by key. flags: what the command line gave.

    Raises CommandError, naming the culprit.
    """
    file = flags.get("config") or environ.get(f"{ENV_PREFIX}CONFIG")
    in_file = _read_file(Path(file)) if file else {}
    return {setting.key: _resolve_one(setting, flags, environ, in_file, file) for setting in SETTINGS}


def _resolve_one(
    setting: Setting,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    in_file: Mapping[str, Any],
    file: str | None,
) -> Any:
    if setting.key in flags:
        return _parse(setting, flags[setting.key], "MODEL" if setting.name == "model" else f"--{setting.name}")
    if setting.env in environ:
        raw = environ[setting.env]
        return _parse(setting, _split(raw) if setting.many else raw, setting.env)
    if setting.key in in_file:
        return _parse(setting, in_file[setting.key], f"{setting.name} in {file}")
    return () if setting.many else setting.default


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"--config: cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"--config: {file} is not TOML: {error}") from None
    found = {key.replace("-", "_"): value for key, value in content.items()}
    unknown = sorted(found.keys() - _BY_KEY.keys())
    if unknown:
        raise CommandError(f"--config: {file} has unknown keys: {', '.join(unknown)}")
    return found


def _split(raw: str) -> list[str]:
    """Return the values of a variable, separated by commas, or in a JSON list of strings where a value has a comma."""
    if raw.lstrip().startswith("["):
        try:
            items = json.loads(raw)
        except json.JSONDecodeError:
            return [raw]
        return [item if isinstance(item, str) else json.dumps(item) for item in items]
    return [raw] if raw.lstrip().startswith("{") else [part.strip() for part in raw.split(",") if part.strip()]


def _parse(setting: Setting, raw: Any, where: str) -> Any:
    if setting.many:
        if isinstance(raw, Iterable) and not isinstance(raw, str | Mapping):
            return tuple(_parse_one(setting, item, where) for item in raw)
        raise CommandError(f"{where}: {raw!r} is not a list")
    return _parse_one(setting, raw, where)


def _parse_one(setting: Setting, raw: Any, where: str) -> Any:
    as_text = json.dumps(raw) if isinstance(raw, bool | dict) else str(raw)
    shown = "the key" if setting.is_secret else repr(as_text)
    try:
        if isinstance(raw, list):
            raise ValueError("is a list, and one value is asked for")
        return setting.parse(as_text)
    except ValueError as error:
        raise CommandError(f"{where}: {shown} {error}{_hint(setting, as_text)}") from None


def _hint(setting: Setting, value: str) -> str:
    if setting.key == "port" and "://" in value:
        return " (Kubernetes sets this variable for a service named peftserve: give the service another name)"
    return ""
