"""Bearer keys."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError, error_response

TENANT = "peftserve.tenant"  # in the ASGI scope: what tells callers with different keys apart
GUARDED = ("/tokenize", "/detokenize", "/tokenizer_info", "/load_lora_adapter", "/reset_prefix_cache")


class BearerAuth:
    """Guards /v1 and the tokenizer's routes, whether or not a route exists; health and metrics stay open."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_guarded(scope["path"]):
            key = _bearer(Headers(scope=scope).get("authorization", ""))
            if not self._knows(key):
                await _refusal()(scope, receive, send)
                return
            scope[TENANT] = hashlib.sha256(key).hexdigest()[:32]
        await self._app(scope, receive, send)

    def _knows(self, key: bytes) -> bool:
        """Compares with every key, each in constant time, so that the time tells nothing about any of them."""
        matches = [hmac.compare_digest(key, known) for known in self._keys]
        return any(matches)


def is_guarded(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/") or path.rstrip("/") in GUARDED


def _bearer(header: str) -> bytes:
    scheme, _, key = header.partition(" ")
    # Header values come decoded as Latin-1, whatever the client meant by the bytes.
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _refusal() -> ASGIApp:
    message = "A valid API key is required; send it as 'Authorization: Bearer KEY'."
    return error_response(ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}))
