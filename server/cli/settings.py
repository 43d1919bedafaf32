"""Every setting of `peftserve serve`, once. Flags, environment variables, keys of the configuration file and the
README's table all come from `SETTINGS`; a flag wins over the environment, that over the file, that over the default.
"""

import argparse
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import values
from .errors import CommandError

ENV_PREFIX = "PEFTSERVE_"


@dataclass(frozen=True)
class Setting:
    """name: the flag without its dashes. parse: from text, or ValueError. many: may be given several times.

    nargs: argparse's, where one occurrence of the flag takes several values.
    default: the value when nothing sets it; shown: how the README writes that default.
    """

    name: str
    metavar: str
    parse: Callable[[str], Any]
    help: str
    default: Any = None
    shown: str = ""
    many: bool = False
    nargs: str | None = None

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.key.upper()

    @property
    def is_switch(self) -> bool:
        return self.parse is values.boolean


_COUNT = values.whole(1)

SETTINGS = (
    Setting("model", "MODEL", values.text, "folder or hub id of the base, in Hugging Face format", shown="the demo"),
    Setting("host", "HOST", values.text, "address to listen on", "127.0.0.1"),
    Setting("port", "PORT", values.whole(0, 65535), "port to listen on; 0 takes a free one", 8000),
    Setting("api-workers", "N", _COUNT, "processes that answer HTTP, on the one port and with the one engine", 1),
    Setting("adapter", "NAME=PATH", values.named_folder, "adapter to load at start; repeatable", many=True),
    Setting(
        "state-dir",
        "DIR",
        values.path,
        "where uploaded adapters and settings live, and survive a restart",
        shown="`~/.local/state/peftserve/<base>`",
    ),
    Setting("served-model-name", "NAME", values.text, "the base's id", shown="folder or hub id"),
    Setting("device", "DEVICE", values.one_of("auto", "cpu", "cuda"), "auto, cpu or cuda", "auto"),
    Setting(
        "dtype",
        "DTYPE",
        values.one_of("auto", "bfloat16", "float16", "float32"),
        "of weights and activations: auto, bfloat16, float16 or float32",
        "auto",
    ),
    Setting("max-model-len", "N", _COUNT, "most tokens of prompt and output together", shown="the model's own limit"),
    Setting(
        "max-batch-tokens",
        "N",
        _COUNT,
        "token budget of one step, of which a mixture's token takes one for each adapter",
        2048,
    ),
    Setting("max-running", "N", _COUNT, "sequences in one step", 256),
    Setting("kv-cache-tokens", "N", _COUNT, "capacity of the KV cache", shown="what memory allows"),
    Setting("page-size", "N", _COUNT, "tokens in one page of the KV cache", 16),
    Setting("prefix-caching", "", values.boolean, "reuse the KV pages of equal prompt beginnings", True),
    Setting("adapter-memory", "SIZE", values.size, "device memory for adapters", shown="what `max-loras` needs"),
    Setting("max-loras", "N", _COUNT, "adapters on the device at once", 32),
    Setting("max-lora-rank", "N", _COUNT, "largest rank that is taken", 512),
    Setting(
        "wide-columns",
        "N",
        values.whole(0),
        "spare columns of each weight, in which adapters of long prompts run inside the base's products; 0: none",
        shown="256 on a GPU, else 0",
    ),
    Setting("max-dense-delta", "SIZE", values.size, "most memory for one adapter's full-rank deltas", 1 << 30, "1GiB"),
    Setting("host-adapter-memory", "SIZE", values.size, "host memory for adapters off the device", 1 << 30, "1GiB"),
    Setting("max-cpu-loras", "N", _COUNT, "most adapters in host memory", shown="by size alone"),
    Setting("enable-lora", "", values.boolean, "accepted for vLLM's sake: adapters are always on", True),
    Setting(
        "lora-modules",
        "NAME=PATH|JSON",
        values.named_folder,
        'as --adapter, as vLLM spells it; JSON has "name" and "path"',
        many=True,
        nargs="+",
    ),
    Setting(
        "allow-adapter-path", "DIR", values.path, "folder below which requests may name adapters; repeatable", many=True
    ),
    Setting(
        "allow-adapter-source",
        "SOURCE",
        values.one_of("hub", "s3"),
        "other place that requests may name adapters from: hub or s3; repeatable",
        many=True,
    ),
    Setting(
        "allow-other-base",
        "",
        values.boolean,
        "serve the state folder's adapters although they were made for another base",
        False,
    ),
    Setting("api-key-file", "FILE", values.path, "Bearer keys, one a line; every /v1 route asks for one", shown="open"),
    Setting("max-queue", "N", values.whole(0), "requests that may wait before new ones get 429", 1024),
    Setting("upload-limit", "SIZE", values.size, "largest uploaded adapter", 4 << 30, "4GiB"),
    Setting("body-limit", "SIZE", values.size, "largest body of any other request", 16 << 20, "16MiB"),
    Setting(
        "limit-header-bytes",
        "SIZE",
        values.size,
        "largest request line and headers, together; and at most 100 headers",
        32 << 10,
        "32KiB",
    ),
    Setting("limit-connections", "N", values.whole(0), "open connections, in all processes; 0: no limit", 4096),
    Setting(
        "limit-connections-per-address",
        "N",
        values.whole(0),
        "the same from one address (IPv6: one /64); 0, for servers behind a proxy: no limit",
        0,
        "0",
    ),
    Setting(
        "limit-body-memory",
        "SIZE",
        values.size,
        "memory for bodies over 64 KiB while they are received, in all processes",
        256 << 20,
        "256MiB",
    ),
    Setting(
        "timeout-headers",
        "SECONDS",
        values.seconds,
        "for a request's line and headers; 0, as for the others: none",
        10.0,
        "10",
    ),
    Setting(
        "timeout-body",
        "SECONDS",
        values.seconds,
        "between bytes of a body, which must make 1 KiB/s on the mean of 4 times that",
        60.0,
        "60",
    ),
    Setting("timeout-idle", "SECONDS", values.seconds, "between an answer and the next request", 75.0, "75"),
    Setting(
        "timeout-write",
        "SECONDS",
        values.seconds,
        "for a client that reads nothing of its answer, or less than 1 KiB/s for 4 times that",
        60.0,
        "60",
    ),
    Setting("grace-period", "SECONDS", values.seconds, "time for running requests to end on SIGTERM", 30.0, "30"),
    Setting("num-threads", "N", _COUNT, "CPU threads of the engine", shown="the cores"),
    Setting(
        "async-scheduling", "", values.boolean, "prepare a step while the one before it runs", shown="on a GPU only"
    ),
    Setting(
        "compile",
        "",
        values.boolean,
        "on a CPU, compile steps at start, with a C++ compiler (GPUs always do)",
        False,
    ),
    Setting("enforce-eager", "", values.boolean, "no CUDA graphs and nothing compiled: operator by operator", False),
    Setting("trust-remote-code", "", values.boolean, "run Python code that comes with the model", False),
    Setting(
        "log-level",
        "LEVEL",
        values.one_of("debug", "info", "warning", "error", "critical"),
        "debug, info, warning, error or critical",
        "info",
    ),
)
_BY_KEY = {setting.key: setting for setting in SETTINGS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every flag, its value left as text; one that is not given is left out of the namespace."""
    parser.add_argument("model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help=_BY_KEY["model"].help)
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="TOML file with any of these keys")
    for setting in SETTINGS[1:]:
        _add_flag(parser, setting)


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
    """Every setting's value by key. flags: what the command line gave. Raises CommandError, naming the culprit."""
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
    """A variable holds several values separated by commas, or a JSON list of strings where a value has a comma."""
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
    try:
        if isinstance(raw, list):
            raise ValueError("is a list, and one value is asked for")
        return setting.parse(as_text)
    except ValueError as error:
        raise CommandError(f"{where}: {as_text!r} {error}{_hint(setting, as_text)}") from None


def _hint(setting: Setting, value: str) -> str:
    if setting.key == "port" and "://" in value:
        return " (Kubernetes sets this variable for a service named peftserve: give the service another name)"
    return ""
