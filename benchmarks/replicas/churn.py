"""Uploads and deletions under traffic: no request may fail, and no answer may be of any but the newest version."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from ..swap.copies import Copies
from .servers import TIMEOUT, Server

PROMPT = "quiet river bridge"
NAME = "changing"
ASKERS = 4  # of each name, after each change


class Churn:
    """One name whose content changes, and one that stays, both asked all the time.

    folders: of adapters that answer PROMPT differently, by name; the first stays.
    """

    def __init__(self, server: Server, folders: Mapping[str, Path]) -> None:
        self._http = httpx.AsyncClient(
            base_url=server.url, timeout=TIMEOUT, trust_env=False, limits=httpx.Limits(max_connections=None)
        )
        self._copies = {name: Copies(folder) for name, folder in folders.items()}
        self._right: dict[str, str] = {}
        self._over = False
        self.found = Counter[str]()

    async def run(self, operations: int) -> Counter[str]:
        """Return counts of operations, of answers, and of what went wrong."""
        async with self._http:
            for name in self._copies:
                await self._upload(name, name, "first")
                self._right[name] = _text(await self._ask(name))
            assert len({*self._right.values()}) == len(self._right), "adapters that answer alike tell nothing apart"
            async with asyncio.TaskGroup() as tasks:
                for _ in range(ASKERS):
                    tasks.create_task(self._ask_on(next(iter(self._copies))))
                await self._change(operations)
                self._over = True
        return self.found

    async def _change(self, operations: int) -> None:
        """Upload a version, ask for it, and delete the name after each second one: then all must get 404."""
        contents = itertools.cycle(self._copies)
        while self.found["uploads"] + self.found["deletions"] < operations:
            for _ in range(2):
                content = next(contents)
                await self._upload(NAME, content, str(self.found["uploads"]))
                await asyncio.gather(*(self._expect(NAME, content) for _ in range(ASKERS)))
            await self._delete()
            await asyncio.gather(*(self._expect_none() for _ in range(ASKERS)))

    async def _ask_on(self, name: str) -> None:
        while not self._over:
            await self._expect(name, name)

    async def _expect(self, model: str, content: str) -> None:
        answer = await self._ask(model)
        self.found["answers"] += 1
        if answer.status_code != 200:
            self.found["failed"] += 1
        elif (text := _text(answer)) != self._right[content]:
            self.found["stale" if text in self._right.values() else "other texts"] += 1

    async def _expect_none(self) -> None:
        answer = await self._ask(NAME)
        self.found["answers"] += 1
        self.found["answers of deleted ones"] += answer.status_code != 404

    async def _ask(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, "temperature": 0}
        return await self._http.post("/v1/chat/completions", json=body)

    async def _upload(self, name: str, content: str, mark: str) -> None:
        files = self._copies[content].form(mark)
        answer = await self._http.post("/v1/adapters", data={"name": name}, files=files)
        self.found["uploads"] += 1
        self.found["failed uploads"] += answer.status_code != 201

    async def _delete(self) -> None:
        answer = await self._http.delete(f"/v1/adapters/{NAME}")
        self.found["deletions"] += 1
        self.found["failed deletions"] += answer.status_code != 200


def _text(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


async def measure(server: Server, folders: Mapping[str, Path], operations: int) -> dict[str, Any]:
    return {"replicas": server.replicas, **await Churn(server, folders).run(operations)}
