"""What every request of a public port passes on its way to the application and back.

The outermost first: who watches requests, their id, the audit log, whose pages may ask, other origins, HEAD,
compression, the proxy's prefix. Requests that come from other processes of the server have passed it there, and keep
the id that they got.
"""

import ssl
from collections.abc import Callable

from starlette.types import ASGIApp

from ..config import ServerConfig
from .http.compression import Compression
from .http.cors import CorsRules
from .http.methods import HeadAsGet
from .http.refusals import Refused, id_alone
from .http.request_ids import RequestIds
from .http.root_path import WithoutRootPath
from .http.tls import TlsFiles
from .http.web_pages import PageRules, WebPages, own_hosts
from .processes.clients import FromOthers
from .watching.audit import Audited
from .watching.watch import Watch
from .watching.watchers import Watchers


def at_the_edge(config: ServerConfig, watchers: Watchers, app: ASGIApp) -> ASGIApp:
    """Return the application as a public port has it. watchers: who is told of each request."""
    if config.root_path:
        app = WithoutRootPath(app, config.root_path)
    if config.gzip:
        app = Compression(app)
    app = WebPages(cors_rules(config).wrap(HeadAsGet(app)), page_rules(config))
    app = RequestIds(_audited(watchers, app, config.root_path))
    return Watch(app, watchers.ended) if watchers.ended else app


def between_processes(watchers: Watchers, app: ASGIApp) -> ASGIApp:
    """Return the application as the private socket has it, for what other processes pass on."""
    return RequestIds(FromOthers(_audited(watchers, app)))


def _audited(watchers: Watchers, app: ASGIApp, prefix: str = "") -> ASGIApp:
    return app if watchers.audit is None else Audited(app, watchers.audit, prefix)


def refusals(config: ServerConfig, watchers: Watchers) -> Callable[[Refused], list[tuple[bytes, bytes]]]:
    """Return what tells of requests that no application has seen, and makes the headers of their answers."""
    cors = cors_rules(config)

    def refused(refused: Refused) -> list[tuple[bytes, bytes]]:
        ((name, request_id),) = id_alone(refused)
        watchers.refused(refused, request_id.decode())
        return [(name, request_id), *cors.answer_headers(refused.headers)]

    return refused


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """Return what TLS takes; None without it. Raises OSError for files that do not do."""
    if config.ssl_certfile is None:
        return None
    return TlsFiles(config.ssl_certfile, config.ssl_keyfile, config.ssl_keyfile_password, config.ssl_ca_certs).context()


def cors_rules(config: ServerConfig) -> CorsRules:
    """Return what pages of other origins may ask."""
    return CorsRules(config.allow_origins, config.allowed_methods, config.allowed_headers, config.allow_credentials)


def page_rules(config: ServerConfig) -> PageRules:
    """Return whose web pages may ask. No browser reaches a Unix socket by itself."""
    lets_all_in = not config.api_keys and config.api_key_file is None and config.uds is None
    hosts = own_hosts(config.host, config.allowed_hosts) if lets_all_in else None
    return PageRules(config.allow_origins, hosts, config.forwarded_allow_ips)
