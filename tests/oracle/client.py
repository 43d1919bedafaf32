"""Completions over HTTP by two clients: plain httpx, and OpenAI's own.

Both are imported when a client is made, so that tests that need none run where they are not installed.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .running_server import PATIENCE

if TYPE_CHECKING:
    import httpx
    import openai

_KNOWN_TO_OPENAI = ("model", "prompt", "max_tokens", "temperature")


@dataclass(frozen=True)
class Answer:
    """A whole completion. adapter: the header `x-peftserve-adapter`."""

    token_ids: list[int]
    text: str
    finish_reason: str | None
    adapter: str


class Client:
    """Both clients, connected to one server.

    Bodies must ask for `return_token_ids`. Methods raise AssertionError for anything but a whole answer.
    """

    def __init__(self, http: "httpx.AsyncClient", official: "openai.AsyncOpenAI") -> None:
        self.http = http
        self.official = official

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> "AsyncIterator[Client]":
        import httpx
        import openai

        limits = httpx.Limits(max_connections=None)
        official = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as http, official:
            yield cls(http, official)

    async def complete(self, body: dict[str, Any]) -> Answer:
        response = await self.http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return _answer(response.json()["choices"], response.headers)

    async def stream(self, body: dict[str, Any], begun: asyncio.Event | None = None) -> Answer:
        """Read a streamed completion to its end. begun: set when the first chunk has come."""
        chunks = []
        async with self.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunks.append(json.loads(line.removeprefix("data: ")))
                    assert "error" not in chunks[-1], chunks[-1]
                if begun is not None and chunks:
                    begun.set()
        return _answer([choice for chunk in chunks for choice in chunk["choices"]], response.headers)

    async def complete_by_openai(self, body: dict[str, Any], stream: bool) -> Answer:
        known = {name: body[name] for name in _KNOWN_TO_OPENAI}
        extra = {name: value for name, value in body.items() if name not in known}
        raw = await self.official.completions.with_raw_response.create(**known, stream=stream, extra_body=extra)
        parsed = raw.parse()
        chunks = [chunk async for chunk in parsed] if stream else [parsed]
        return _answer([choice.model_dump() for chunk in chunks for choice in chunk.choices], raw.headers)


def _answer(choices: list[dict[str, Any]], headers: Any) -> Answer:
    return Answer(
        [token for choice in choices for token in choice["token_ids"]],
        "".join(choice["text"] for choice in choices),
        choices[-1]["finish_reason"],
        headers["x-peftserve-adapter"],
    )
