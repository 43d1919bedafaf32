"""The measured server, and the copies of an adapter that a measurement uploads to it and removes again."""

import asyncio
import contextlib
import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import httpx
from tqdm import tqdm

from peftserve.server.cli.client import headers, message_of
from peftserve.server.cli.errors import FAILED, UNREACHABLE, CommandError
from peftserve.server.cli.load.generator import Target
from peftserve.server.cli.load.stream import Endpoint, Measurement, ask
from peftserve.server.cli.load.trace import Request

from .copies import Copies

PROMPT_TOKENS = 8
CLIENTS = 8  # that upload or delete at the same time
SETTLING = 0.05  # seconds after a request until the engine has reported where its adapters are
_TIMEOUT = httpx.Timeout(300.0, connect=10.0)
_PAGE = 100_000
_DIGITS = 6
_Item = TypeVar("_Item")


class Uploaded(NamedTuple):
    """An upload. seconds: from the first byte sent to the answer."""

    name: str
    seconds: float


class MeasuredServer:
    """A server with copies of an adapter. An async context that removes the copies at its end, unless `keep`."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        copies: Copies,
        *,
        keep: bool,
        known: Sequence[str] = (),
        cpu_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Connect to a server.

        known: copies that are there already. cpu_seconds: CPU time of the server's processes, where known.
        """
        self.cpu_seconds = cpu_seconds
        self.target = Target(url.rstrip("/").removesuffix("/v1"), api_key)
        self._copies = copies
        self._keep = keep
        self._http = httpx.AsyncClient(
            base_url=self.target.url, headers=headers(api_key), timeout=_TIMEOUT, trust_env=False
        )
        self._endpoint = Endpoint(httpx.URL(self.target.url), headers(api_key))
        self._prefix = known[0][:-_DIGITS] if known else f"swap-{secrets.token_hex(4)}-"
        self._numbers = itertools.count(len(known))
        self._seeds = itertools.count()
        self._names = dict.fromkeys(known)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if not self._keep:
                with contextlib.suppress(CommandError):
                    await self._each([*self._names], self.remove)
        finally:
            await self._http.aclose()

    async def upload(self) -> Uploaded:
        """Upload a new copy."""
        name = f"{self._prefix}{next(self._numbers):0{_DIGITS}}"
        files = self._copies.form(name)
        start = time.perf_counter()
        await self._call("POST", "/v1/adapters", data={"name": name}, files=files)
        self._names[name] = None
        return Uploaded(name, time.perf_counter() - start)

    async def register(self, number: int) -> list[str]:
        """Upload this number of new copies from several clients at once; return their names."""
        before = len(self._names)
        with tqdm(total=number, unit="adapter", desc="upload", leave=False, disable=None) as progress:

            async def one(_: int) -> None:
                await self.upload()
                progress.update()

            await self._each(range(number), one)
        return sorted([*self._names][before:])

    async def remove(self, name: str) -> None:
        """Delete a copy."""
        self._names.pop(name, None)
        await self._call("DELETE", f"/v1/adapters/{name}")

    async def states(self) -> dict[str, str]:
        """Return by name where every copy is: `disk`, `host` or `device`. It holds while nothing moves."""
        await asyncio.sleep(SETTLING)
        response = await self._call("GET", "/v1/adapters", params={"after": self._prefix, "limit": str(_PAGE)})
        return {card["name"]: card["state"] for card in response.json()["data"] if card["name"] in self._names}

    async def ask(self, name: str, output_tokens: int = 1, record: list[Measurement] | None = None) -> Measurement:
        """Send one request, with a prompt that no other has. Raises CommandError if it fails.

        record: a list to which the measurement is appended at once, for callers that are cancelled before its end.
        """
        body = self.target.body(Request(None, name, PROMPT_TOKENS, output_tokens, next(self._seeds)))
        measurement = Measurement(name, time.perf_counter())
        if record is not None:
            record.append(measurement)
        await ask(self._endpoint, body, measurement)
        if not measurement.is_good:
            raise CommandError(f"{name} does not answer: {measurement.error}", FAILED)
        return measurement

    async def loads(self) -> int:
        """Return how many adapters the server has loaded to its device since it started."""
        await asyncio.sleep(SETTLING)
        text = (await self._call("GET", "/metrics")).text
        found = re.search(r"^peftserve_adapter_loads_total (\S+)$", text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    async def _each(self, items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]]) -> None:
        waiting = iter(items)

        async def one_client() -> None:
            for item in waiting:
                await work(item)

        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise CommandError(f"no answer from {self.target.url}: {error!r}", UNREACHABLE) from None
        if response.is_error:
            raise CommandError(message_of(response), FAILED)
        return response
