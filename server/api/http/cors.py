"""Requests that web pages of other origins make (CORS): which the operator allows, and what browsers are told.

The middleware stands before keys and limits, so that a preflight needs no key and an error says its origin too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

EXPOSED = ("x-request-id", "x-peftserve-adapter", "x-peftserve-route", "retry-after")
"""Headers of answers that a page's script may read."""


@dataclass(frozen=True)
class CorsRules:
    """What pages of other origins may ask. origins: `*` for any; empty: none, and nothing is said to browsers.

    methods, headers: `*` for any. credentials: whether they may send cookies and certificates.
    """

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return an application that keeps the rules; the same one where no origin is allowed."""
        if not self.origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=self.origins,
            allow_methods=self.methods,
            allow_headers=self.headers,
            allow_credentials=self.credentials,
            expose_headers=EXPOSED,
        )

    def answer_headers(self, request: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer that no application gives. request: the request's, in lower case."""
        origin = next((value for name, value in request if name == b"origin"), None)
        if origin is None or not self._allows(origin.decode("latin-1")):
            return []
        is_any = "*" in self.origins and not self.credentials
        headers = [(b"access-control-allow-origin", b"*" if is_any else origin), (b"vary", b"Origin")]
        return [*headers, (b"access-control-allow-credentials", b"true")] if self.credentials else headers

    def _allows(self, origin: str) -> bool:
        return "*" in self.origins or origin in self.origins
