"""How the server listens, and what it says of itself."""

from .. import values
from .setting import COUNT, Setting

LISTENING = (
    Setting("host", "HOST", values.text, "address to listen on"),
    Setting("port", "PORT", values.whole(0, 65535), "port to listen on; 0 takes a free one"),
    Setting("uds", "PATH", values.path, "Unix socket to listen on instead of host and port", computed="none"),
    Setting(
        "root-path",
        "PATH",
        values.root_path,
        "prefix under which a proxy shows the server, whether or not it takes it off",
        computed="none",
    ),
    Setting("ssl-certfile", "FILE", values.path, "certificate for TLS, with its chain, in PEM", computed="no TLS"),
    Setting("ssl-keyfile", "FILE", values.path, "its private key", computed="in the file of the certificate"),
    Setting("ssl-keyfile-password", "TEXT", values.text, "of the private key", computed="none"),
    Setting(
        "ssl-ca-certs",
        "FILE",
        values.path,
        "certificates of those who certify clients, which must then show a certificate of theirs",
        computed="any client",
    ),
    Setting(
        "allow-origins",
        "ORIGINS",
        values.origins,
        "origins, with commas between, whose web pages may ask: https://a.example, or * for any; repeatable",
        computed="none",
        many=True,
    ),
    Setting(
        "allowed-origins",
        "ORIGINS",
        values.origins,
        "as --allow-origins, as vLLM spells it",
        computed="none",
        many=True,
    ),
    Setting(
        "allowed-hosts",
        "NAMES",
        values.hosts,
        "names, with commas between, by which a server on a loopback address without keys may be asked beside "
        "localhost: box.example, *.example, or * for any; repeatable",
        computed="those of the loopback",
        many=True,
    ),
    Setting(
        "forwarded-allow-ips",
        "ADDRESSES",
        values.networks,
        "addresses and networks of proxies whose X-Forwarded-Host and X-Forwarded-Proto say what the server's own "
        "origin is, or * for any; repeatable",
        computed="none",
        many=True,
    ),
    Setting("allowed-methods", "METHODS", values.names, "methods that such pages may use", computed="any", many=True),
    Setting("allowed-headers", "NAMES", values.names, "headers that such pages may send", computed="any", many=True),
    Setting("allow-credentials", "", values.boolean, "such pages may send cookies and certificates"),
    Setting("gzip", "", values.boolean, "compress large answers for clients that take it"),
    Setting(
        "access-log",
        "FORM",
        values.one_of("json", "text", "off"),
        "one line on standard output for each request when it ends: json, text or off",
    ),
    Setting(
        "otlp-endpoint",
        "URL",
        values.url,
        "where traces of requests go by OTLP over HTTP, such as http://127.0.0.1:4318",
        computed="`OTEL_EXPORTER_OTLP_ENDPOINT`",
    ),
    Setting("api-workers", "N", COUNT, "processes that answer HTTP, on the one port and with the one engine"),
    Setting("ui", "", values.boolean, "the page at / and /ui"),
    Setting(
        "grace-period",
        "SECONDS",
        values.seconds,
        "time from SIGTERM to the exit, in which running requests may end; Kubernetes kills after 30",
    ),
    Setting(
        "engine-timeout",
        "SECONDS",
        values.seconds,
        "without a sign of life after which the engine's process is taken for hung; 0: never",
    ),
    Setting(
        "engine-restart",
        "",
        values.boolean,
        "start an engine again that has died or hangs; without it, the server exits with status 4",
    ),
    Setting(
        "log-level",
        "LEVEL",
        values.one_of("debug", "info", "warning", "error", "critical"),
        "debug, info, warning, error or critical",
    ),
)
