"""Adapters: where they come from, what they may take, and how long they are kept."""

from .. import values
from .setting import COUNT, Setting

ADAPTERS = (
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
    Setting(
        "adapter-memory",
        "SIZE",
        values.size,
        "device memory for adapters",
        computed="what `max-loras` LoRAs of `max-lora-rank` take, at most a tenth of the free memory",
    ),
    Setting("max-loras", "N", COUNT, "adapters on the device at once"),
    Setting("max-lora-rank", "N", COUNT, "largest rank that is taken"),
    Setting(
        "wide-columns",
        "N",
        values.whole(0),
        "spare columns of each weight, in which adapters of long prompts run inside the base's products; 0: none",
        computed="256 on a GPU, else 0",
    ),
    Setting("max-dense-delta", "SIZE", values.size, "most memory for one adapter's full-rank deltas"),
    Setting("host-adapter-memory", "SIZE", values.size, "host memory for adapters off the device"),
    Setting("max-cpu-loras", "N", COUNT, "most adapters in host memory", computed="by size alone"),
    Setting("adapter-templates", "", values.boolean, "render an adapter's chats by the template that it brings"),
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
    Setting("keep-versions", "N", values.whole(0), "newest versions of each adapter that are kept; 0: all"),
    Setting(
        "keep-deleted", "SECONDS", values.seconds, "time for which deleted adapters can be restored; 0: they go at once"
    ),
)
