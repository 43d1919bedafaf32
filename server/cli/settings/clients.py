"""Who may ask, and how much one client can take."""

from .. import values
from .setting import Setting

CLIENTS = (
    Setting(
        "api-key",
        "KEY",
        values.text,
        "Bearer key beside those of --api-key-file; repeatable; others on this machine see what a command line says, "
        "and not the variable",
        computed="none",
        many=True,
        is_secret=True,
    ),
    Setting(
        "api-key-file",
        "FILE",
        values.path,
        "Bearer keys, one a line, or tenants with theirs in TOML; every /v1 route asks for one; read again when it "
        "changes",
        computed="open",
    ),
    Setting(
        "metrics-key",
        "KEY",
        values.text,
        "Bearer key for /metrics and /openapi.json alone, which name adapters; with one, they are for it and for keys "
        "that may do all; repeatable",
        computed="open",
        many=True,
        is_secret=True,
    ),
    Setting(
        "audit-log",
        "FILE",
        values.text,
        "a line of JSON for each change, with who made it; - is standard output",
        computed="off",
    ),
    Setting("shared-adapters", "", values.boolean, "let all tenants see, use and change each other's adapters"),
    Setting("max-adapters-per-key", "N", values.whole(0), "names of adapters that one key may have; 0: no limit"),
    Setting(
        "max-adapter-bytes-per-key",
        "SIZE",
        values.size_or_none,
        "files of adapters that one key may have, all versions together; 0: no limit",
    ),
    Setting("max-queue", "N", values.whole(0), "requests that may wait before new ones get 429"),
    Setting(
        "queue-timeout",
        "SECONDS",
        values.seconds,
        "that a request may wait before it begins, and then gets 429; 0: no limit",
    ),
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
)
