"""The command `peftserve serve`: from settings to the one configuration object, and then to the server."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config import EngineConfig, ServerConfig
from ..demo import DEMO_ADAPTERS, DEMO_MODEL, DEMO_NAME, DEMO_ROUTES
from . import resolution
from .errors import CommandError

Named = tuple[str, Path]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a base model and its adapters over HTTP",
        description="Serve MODEL, or the built-in demo, and any number of adapters on it. Each flag is also an "
        "environment variable (--max-loras: PEFTSERVE_MAX_LORAS) and a key of the --config file.",
    )
    resolution.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    config = make_config(resolution.resolve(vars(arguments), os.environ), os.environ)
    from ..api.serve import run as run_server  # late: `--help` and a mistake in a flag need no server

    return run_server(config)


def make_config(chosen: Mapping[str, Any], environ: Mapping[str, str]) -> ServerConfig:
    """Return the server's configuration. chosen: every setting's value by key.

    Raises CommandError for what only shows in combination or on disk.
    """
    name = chosen["served_model_name"] or model_name(chosen["model"])
    demo = ([], []) if chosen["model"] else ([*DEMO_ADAPTERS.items()], [*DEMO_ROUTES.items()])
    state_dir = chosen["state_dir"] or default_state_dir(name, environ)
    return ServerConfig(
        **_same_named(ServerConfig, chosen, {"served_model_name", "state_dir", "adapter_dir"}),
        engine=_engine_config(chosen, state_dir),
        state_dir=state_dir,
        served_model_name=name,
        preload=_checked([*demo[0], *chosen["adapter"], *chosen["lora_modules"]], "--adapter", _existing),
        preload_routes=_checked([*demo[1], *chosen["route"]], "--route", _existing_file),
        allow_adapter_paths=tuple(_existing(folder, "--allow-adapter-path") for folder in chosen["allow_adapter_path"]),
        allow_adapter_sources=frozenset(chosen["allow_adapter_source"]),
        allow_source_hosts=tuple(chosen["allow_source_host"]),
        adapter_sources=tuple(chosen["adapter_source"]),
        adapter_dir=chosen["adapter_dir"] and _existing(chosen["adapter_dir"], "--adapter-dir"),
        api_keys=_read_keys(chosen["api_key_file"]),
    )


def _same_named(kind: type, chosen: Mapping[str, Any], worked_out: Set[str]) -> dict[str, Any]:
    """Return the settings that are fields of a configuration as they are; all but those which are `worked_out`."""
    return {field.name: chosen[field.name] for field in fields(kind) if field.name in chosen.keys() - worked_out}


def _engine_config(chosen: Mapping[str, Any], state_dir: Path) -> EngineConfig:
    if not chosen["enable_lora"]:
        raise CommandError("--no-enable-lora: adapters are always on; the base's id answers without one")
    return EngineConfig(
        **_same_named(EngineConfig, chosen, {"model"}),
        model=chosen["model"] or str(DEMO_MODEL),
        store=state_dir / "adapters",
    )


def default_state_dir(name: str, environ: Mapping[str, str]) -> Path:
    """Return the base's own folder in the user's state folder: adapters fit one base only."""
    home = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "peftserve" / name.replace("/", "--")


def model_name(model: str | None) -> str:
    """Return the base's id unless another is chosen: the name of its folder or repository, or the demo's."""
    if model is None:
        return DEMO_NAME
    return Path(model).resolve().name if Path(model).is_dir() else model


def _checked(named: Iterable[Named], flag: str, existing: Callable[[Path, str], Path]) -> tuple[Named, ...]:
    """Return the names with their paths made absolute.

    existing: raises CommandError for a path that is not there. Raises CommandError also for a name that comes twice.
    """
    checked: dict[str, Path] = {}
    for name, path in named:
        if name in checked:
            raise CommandError(f"{flag}: the name {name!r} comes twice")
        checked[name] = existing(path, f"{flag} {name}")
    return tuple(checked.items())


def _existing(folder: Path, where: str) -> Path:
    if not folder.is_dir():
        raise CommandError(f"{where}: there is no folder {str(folder)!r}")
    return folder.resolve()


def _existing_file(file: Path, where: str) -> Path:
    if not file.is_file():
        raise CommandError(f"{where}: there is no file {str(file)!r}")
    return file.resolve()


def _read_keys(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--api-key-file: cannot read {str(file)!r}: {error}") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise CommandError(f"--api-key-file: {str(file)!r} has no key in it")
    return keys
