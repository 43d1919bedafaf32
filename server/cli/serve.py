"""The command `peftserve serve`: from settings to the one configuration object, and then to the server."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import fields
from pathlib import Path
from typing import Any

from peftserve.adapters.quotas import Quota

from ..api.tenancy.key_file import KeyFileError, parse_keys
from ..api.tenancy.keyring import read_key_file
from ..config import EngineConfig, ServerConfig
from ..demo import DEMO_ADAPTERS, DEMO_MODEL, DEMO_NAME, DEMO_ROUTES
from ..model_files import model_id
from . import resolution
from .errors import CommandError
from .model_check import check_model

Named = tuple[str, Path]

OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"  # OpenTelemetry's own variable

_ORIGINS = {"allowed_hosts", "forwarded_allow_ips", "allow_origins", "allowed_methods", "allowed_headers"}
_FILES = {"ssl_certfile", "ssl_keyfile", "ssl_ca_certs"}
_WORKED_OUT = {
    "served_model_name",
    "other_model_names",
    "state_dir",
    "adapter_dir",
    "api_key_file",
    "audit_log",
    "otlp_endpoint",
    "uds",
    "root_path",
    *_ORIGINS,
    *_FILES,
}


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
    check_model(config.engine.model)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of all libraries, in the engine's process too
    from ..api.serve import run as run_server  # late: `--help` and a mistake in a flag need no server

    return run_server(config)


def make_config(chosen: Mapping[str, Any], environ: Mapping[str, str]) -> ServerConfig:
    """Return the server's configuration. chosen: every setting's value by key.

    Raises CommandError for what only shows in combination or on disk.
    """
    name, *others = chosen["served_model_name"] or [model_name(chosen["model"])]
    demo = ([], []) if chosen["model"] else ([*DEMO_ADAPTERS.items()], [*DEMO_ROUTES.items()])
    state_dir = chosen["state_dir"] or default_state_dir(name, environ)
    return ServerConfig(
        **_same_named(ServerConfig, chosen, _WORKED_OUT),
        engine=_engine_config(chosen, state_dir),
        state_dir=state_dir,
        served_model_name=name,
        other_model_names=tuple(other for other in dict.fromkeys(others) if other != name),
        preload=_checked([*demo[0], *chosen["adapter"], *chosen["lora_modules"]], "--adapter", _existing),
        preload_routes=_checked([*demo[1], *chosen["route"]], "--route", _existing_file),
        allow_adapter_paths=tuple(_existing(folder, "--allow-adapter-path") for folder in chosen["allow_adapter_path"]),
        allow_adapter_sources=frozenset(chosen["allow_adapter_source"]),
        allow_source_hosts=tuple(chosen["allow_source_host"]),
        adapter_sources=tuple(chosen["adapter_source"]),
        adapter_dir=chosen["adapter_dir"] and _existing(chosen["adapter_dir"], "--adapter-dir"),
        api_keys=tuple(dict.fromkeys(chosen["api_key"])),
        metrics_keys=tuple(dict.fromkeys(chosen["metrics_key"])),
        api_key_file=_checked_keys(chosen["api_key_file"]),
        audit_log=_log_target(chosen["audit_log"]),
        uds=chosen["uds"] and chosen["uds"].absolute(),
        root_path=chosen["root_path"] or "",
        allowed_hosts=_flat(chosen["allowed_hosts"]),
        forwarded_allow_ips=_flat(chosen["forwarded_allow_ips"]),
        allow_origins=_flat(chosen["allow_origins"], chosen["allowed_origins"]),
        allowed_methods=tuple(method.upper() for method in _flat(chosen["allowed_methods"])) or ("*",),
        allowed_headers=_flat(chosen["allowed_headers"]) or ("*",),
        otlp_endpoint=chosen["otlp_endpoint"] or environ.get(OTLP_ENDPOINT) or None,
        **_files(chosen),
    )


def _flat(*lists: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names of all lists, each once."""
    return tuple(dict.fromkeys(name for names in lists for some in names for name in some))


def _files(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the files of TLS, made absolute.

    Raises CommandError for one that is not there, or is no use without a certificate.
    """
    if chosen["ssl_certfile"] is None and (chosen["ssl_keyfile"] or chosen["ssl_ca_certs"]):
        raise CommandError("--ssl-keyfile and --ssl-ca-certs are for TLS, which takes --ssl-certfile")
    return {key: chosen[key] and _existing_file(chosen[key], f"--{key.replace('_', '-')}") for key in _FILES}


def _same_named(kind: type, chosen: Mapping[str, Any], worked_out: Set[str]) -> dict[str, Any]:
    """Return the settings that are fields of a configuration as they are; all but those which are `worked_out`."""
    return {field.name: chosen[field.name] for field in fields(kind) if field.name in chosen.keys() - worked_out}


def _engine_config(chosen: Mapping[str, Any], state_dir: Path) -> EngineConfig:
    if not chosen["enable_lora"]:
        raise CommandError("--no-enable-lora: adapters are always on; the base's id answers without one")
    if not chosen["enable_auto_tool_choice"]:
        raise CommandError("--no-enable-auto-tool-choice: say --tool-call-parser none to have no calls read")
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
    """Return the base's id unless another is chosen: the demo's without a model."""
    return DEMO_NAME if model is None else model_id(model)


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


def _log_target(target: str | None) -> str | None:
    """Return the path of a log, made absolute; `-` stays what it is."""
    return target if target is None or target == "-" else str(Path(target).expanduser().absolute())


def _checked_keys(file: Path | None) -> Path | None:
    """Return the file of keys, made absolute. Raises CommandError for one that cannot be used."""
    if file is None:
        return None
    try:
        parse_keys(read_key_file(file), Quota())
    except KeyFileError as error:
        raise CommandError(f"--api-key-file: {str(file)!r} {error}") from None
    return file.absolute()
