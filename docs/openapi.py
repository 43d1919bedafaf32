"""The server's OpenAPI document, as `GET /openapi.json` answers it, without an engine and without a state folder."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx

from peftserve.server.api.app import create_app, make_services
from peftserve.server.config import EngineConfig, ServerConfig


class _NoEngine:
    """A stand-in for the engine's client: no route but the document's is called."""

    def add_stats_listener(self, listener: Callable[..., None]) -> None:
        pass


def openapi() -> dict[str, Any]:
    config = ServerConfig(EngineConfig("demo"), Path("state"), served_model_name="demo")
    services = make_services(cast(Any, _NoEngine()), config, cast(Any, None), [0])
    return asyncio.run(_ask(httpx.ASGITransport(cast(Any, create_app(services)))))


async def _ask(transport: httpx.ASGITransport) -> dict[str, Any]:
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/openapi.json")
    document: dict[str, Any] = answer.raise_for_status().json()
    return document
