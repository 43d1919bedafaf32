"""The settings of `peftserve serve`. Flags, environment variables, keys of the configuration file and the documented
table all come from `SETTINGS`; a flag wins over the environment, that over the file, that over the default.

Defaults stand in `server/config.py` and nowhere else: a setting takes that of the field which has its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ..config import EngineConfig, ServerConfig
from . import values

ENV_PREFIX = "PEFTSERVE_"
DEFAULTS: Mapping[str, Any] = {
    "enable_lora": True,  # no field of a configuration: adapters are always on
    **{f.name: f.default for kind in (EngineConfig, ServerConfig) for f in fields(kind) if f.default is not MISSING},
}


@dataclass(frozen=True)
class Setting:
    """One setting.

    name: the flag without its dashes. parse: from text to a value, or ValueError. many: may be given several times.
    computed: how the default is described where there is no fixed value and the start works it out.
    nargs: argparse's, where one occurrence of the flag takes several values.
    """

    name: str
    metavar: str
    parse: Callable[[str], Any]
    help: str
    computed: str = ""
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

    @property
    def default(self) -> Any:
        """Return the value when nothing sets it: the configuration's own; None where that has none."""
        return DEFAULTS.get(self.key)

    @property
    def shown(self) -> str:
        """Return the default as people write it, for sizes, seconds and what is worked out; `""` for all others."""
        if self.computed or self.is_switch or self.default is None:
            return self.computed
        if self.parse in (values.size, values.size_or_none) and self.default:
            return values.show_size(self.default)
        return f"{self.default:g}" if self.parse is values.seconds or self.default == 0 else ""


_COUNT = values.whole(1)

SETTINGS = (
    Setting("model", "MODEL", values.text, "folder or hub id of the base, in Hugging Face format", computed="the demo"),
    Setting("host", "HOST", values.text, "address to listen on"),
    Setting("port", "PORT", values.whole(0, 65535), "port to listen on; 0 takes a free one"),
    Setting("api-workers", "N", _COUNT, "processes that answer HTTP, on the one port and with the one engine"),
    Setting("adapter", "NAME=PATH", values.named_path, "adapter to load at start; repeatable", many=True),
    Setting(
        "route",
        "NAME=FILE",
        values.named_path,
        "route to put at start where there is none of this name: its body as JSON; repeatable",
        many=True,
    ),
    Setting(
        "state-dir",
        "DIR",
        values.path,
        "where uploaded adapters and settings live, and survive a restart",
        computed="`~/.local/state/peftserve/<base>`",
    ),
    Setting("served-model-name", "NAME", values.text, "the base's id", computed="folder or hub id"),
    Setting("device", "DEVICE", values.one_of("auto", "cpu", "cuda"), "auto, cpu or cuda"),
    Setting(
        "dtype",
        "DTYPE",
        values.one_of("auto", "bfloat16", "float16", "float32"),
        "of weights and activations: auto, bfloat16, float16 or float32",
    ),
    Setting(
        "max-model-len", "N", _COUNT, "most tokens of prompt and output together", computed="the model's own limit"
    ),
    Setting(
        "max-batch-tokens",
        "N",
        _COUNT,
        "token budget of one step, of which a mixture's token takes one for each adapter",
    ),
    Setting("max-running", "N", _COUNT, "sequences in one step"),
    Setting("kv-cache-tokens", "N", _COUNT, "capacity of the KV cache", computed="what memory allows"),
    Setting("page-size", "N", _COUNT, "tokens in one page of the KV cache"),
    Setting("prefix-caching", "", values.boolean, "reuse the KV pages of equal prompt beginnings"),
    Setting(
        "adapter-memory",
        "SIZE",
        values.size,
        "device memory for adapters",
        computed="what `max-loras` LoRAs of `max-lora-rank` take, at most a tenth of the free memory",
    ),
    Setting("max-loras", "N", _COUNT, "adapters on the device at once"),
    Setting("max-lora-rank", "N", _COUNT, "largest rank that is taken"),
    Setting(
        "wide-columns",
        "N",
        values.whole(0),
        "spare columns of each weight, in which adapters of long prompts run inside the base's products; 0: none",
        computed="256 on a GPU, else 0",
    ),
    Setting("max-dense-delta", "SIZE", values.size, "most memory for one adapter's full-rank deltas"),
    Setting("host-adapter-memory", "SIZE", values.size, "host memory for adapters off the device"),
    Setting("max-cpu-loras", "N", _COUNT, "most adapters in host memory", computed="by size alone"),
    Setting("enable-lora", "", values.boolean, "accepted for vLLM's sake: adapters are always on"),
    Setting(
        "lora-modules",
        "NAME=PATH|JSON",
        values.named_path,
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
        values.one_of("hub", "s3", "gs", "http"),
        "other place that requests may name adapters from: hub, s3, gs or http; repeatable",
        many=True,
    ),
    Setting(
        "allow-source-host",
        "HOST",
        values.text,
        "host of sources over HTTP: name, name:port, *.domain, or * for any; repeatable",
        many=True,
    ),
    Setting(
        "allow-private-sources",
        "",
        values.boolean,
        "get adapters over HTTP also from addresses that are not on the public internet",
    ),
    Setting("hub-token-file", "FILE", values.path, "token for the hub, read anew at each use", computed="`HF_TOKEN`"),
    Setting("timeout-source", "SECONDS", values.seconds, "to get an adapter from a source"),
    Setting(
        "adapter-source",
        "URI/{name}",
        values.template,
        "where adapters that are not registered are looked for when a request names them; repeatable",
        many=True,
    ),
    Setting("adapter-dir", "DIR", values.path, "folder whose sub-folders are adapters while they are there"),
    Setting(
        "allow-other-base",
        "",
        values.boolean,
        "serve the state folder's adapters although they were made for another base",
    ),
    Setting(
        "api-key-file", "FILE", values.path, "Bearer keys, one a line; every /v1 route asks for one", computed="open"
    ),
    Setting("keep-versions", "N", values.whole(0), "newest versions of each adapter that are kept; 0: all"),
    Setting(
        "keep-deleted", "SECONDS", values.seconds, "time for which deleted adapters can be restored; 0: they go at once"
    ),
    Setting("max-adapters-per-key", "N", values.whole(0), "names of adapters that one key may have; 0: no limit"),
    Setting(
        "max-adapter-bytes-per-key",
        "SIZE",
        values.size_or_none,
        "files of adapters that one key may have, all versions together; 0: no limit",
    ),
    Setting("max-queue", "N", values.whole(0), "requests that may wait before new ones get 429"),
    Setting("upload-limit", "SIZE", values.size, "largest uploaded adapter"),
    Setting("body-limit", "SIZE", values.size, "largest body of any other request"),
    Setting(
        "limit-header-bytes", "SIZE", values.size, "largest request line and headers, together; and at most 100 headers"
    ),
    Setting("limit-connections", "N", values.whole(0), "open connections, in all processes; 0: no limit"),
    Setting(
        "limit-connections-per-address",
        "N",
        values.whole(0),
        "the same from one address (IPv6: one /64); 0, for servers behind a proxy: no limit",
    ),
    Setting(
        "limit-body-memory",
        "SIZE",
        values.size,
        "memory for bodies over 64 KiB while they are received, in all processes",
    ),
    Setting(
        "timeout-headers", "SECONDS", values.seconds, "for a request's line and headers; 0, as for the others: none"
    ),
    Setting(
        "timeout-body",
        "SECONDS",
        values.seconds,
        "between bytes of a body, which must make 1 KiB/s on the mean of 4 times that",
    ),
    Setting("timeout-idle", "SECONDS", values.seconds, "between an answer and the next request"),
    Setting(
        "timeout-write",
        "SECONDS",
        values.seconds,
        "for a client that reads nothing of its answer, or less than 1 KiB/s for 4 times that",
    ),
    Setting("grace-period", "SECONDS", values.seconds, "time for running requests to end on SIGTERM"),
    Setting("num-threads", "N", _COUNT, "CPU threads of the engine", computed="the cores"),
    Setting(
        "async-scheduling", "", values.boolean, "prepare a step while the one before it runs", computed="on a GPU only"
    ),
    Setting("compile", "", values.boolean, "on a CPU, compile steps at start, with a C++ compiler (GPUs always do)"),
    Setting("enforce-eager", "", values.boolean, "no CUDA graphs and nothing compiled: operator by operator"),
    Setting("trust-remote-code", "", values.boolean, "run Python code that comes with the model"),
    Setting(
        "log-level",
        "LEVEL",
        values.one_of("debug", "info", "warning", "error", "critical"),
        "debug, info, warning, error or critical",
    ),
)
