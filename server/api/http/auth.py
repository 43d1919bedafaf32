"""Who asks: a bearer key, or the client's address where no key is asked for."""

from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from peftserve.adapters.quotas import Quota

from ..tenancy.keyring import Keyring
from ..tenancy.tenant import ANYONE, of_address
from .errors import ApiError, error_response

TENANT = "peftserve.tenant"  # in the ASGI scope: the Tenant that asks
IS_KNOWN = "peftserve.is_known"  # and a function that says whether the key, if one is asked for, is known still
GUARDED = (
    *("/tokenize", "/detokenize", "/tokenizer_info", "/load_lora_adapter", "/reset_prefix_cache"),
    *("/score", "/rerank", "/v2/rerank"),
)
NAMING = ("/metrics", "/openapi.json")  # say which adapters there are


class BearerAuth:
    """Says who asks, and guards /v1 and the tokenizer's routes, whether or not a route exists; health stays open.

    quota: of an address. scrapers: of those who may read metrics besides who may do all; without any, everybody may.
    """

    def __init__(self, app: ASGIApp, keys: Keyring, quota: Quota, scrapers: Keyring) -> None:
        self._app = app
        self._keys = keys
        self._scrapers = scrapers
        self._quota = quota

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = _bearer(Headers(scope=scope).get("authorization", ""))
            if self._keys.is_open:
                client = scope["client"]
                tenant = of_address(client[0] if client else "", self._quota)
            else:
                tenant = self._keys.find(key) or ANYONE
            if (tenant is ANYONE and is_guarded(scope["path"])) or not self._may_scrape(key, scope["path"]):
                await _refusal()(scope, receive, send)
                return
            scope[TENANT] = tenant
            scope[IS_KNOWN] = partial(self._is_known, key)
        await self._app(scope, receive, send)

    def _is_known(self, key: bytes) -> bool:
        return self._keys.is_open or self._keys.find(key) is not None

    def _may_scrape(self, key: bytes, path: str) -> bool:
        """Return whether a key, if one is needed at all, is one for what names adapters of all tenants."""
        if self._scrapers.is_open or path.rstrip("/") not in NAMING:
            return True
        tenant = self._keys.find(key)
        return (tenant is not None and tenant.is_admin) or self._scrapers.find(key) is not None


def is_guarded(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/") or path.rstrip("/") in GUARDED


def _bearer(header: str) -> bytes:
    scheme, _, key = header.partition(" ")
    # Header values come decoded as Latin-1, whatever the client meant by the bytes: some in the middle of a character
    # are spaces there.
    return key.strip(" \t").encode("latin-1") if scheme.lower() == "bearer" else b""


def _refusal() -> ASGIApp:
    message = "A valid API key is required; send it as 'Authorization: Bearer KEY'."
    return error_response(ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}))
