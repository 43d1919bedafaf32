"""A real server over a tiny model, which faults are given to, and what has to hold of it afterwards.

It has three adapters that stay, with the default on one of them, and others that come and go. All of them are of the
contents of those that stay, so that the answers of each are known from before the first fault.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx

from peftserve.adapters import maintenance
from peftserve.adapters.files import digest_of

from .injector import Injector

PATIENCE = 120.0
"""Seconds after which a wait has failed, on however slow a machine."""
PASSING = ("engine_dead", "loading", "unavailable")
"""Codes of 503 for as long as one of the server's processes has no successor yet."""
STAYING = ("a0", "a1", "a2")
DEFAULT = "a1"
BASE = "tiny"
OPTIONS = {"prompt": [20, 30, 40], "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
FLAGS = (
    *("--served-model-name", BASE, "--max-loras", "2", "--max-cpu-loras", "2", "--host-adapter-memory", "1"),
    *("--engine-timeout", "20", "--timeout-headers", "3", "--timeout-body", "3", "--timeout-write", "3"),
    *("--limit-connections", "64", "--upload-limit", "64MiB", "--max-model-len", "256", "--api-workers", "2"),
)


def load_oracle() -> ModuleType:
    """Return the package in tests/oracle, as the fixture of this name does."""
    if "oracle" in sys.modules:
        return sys.modules["oracle"]
    path = Path(__file__).parents[1] / "oracle" / "__init__.py"
    spec = importlib.util.spec_from_file_location("oracle", path, submodule_search_locations=[str(path.parent)])
    assert spec
    assert spec.loader
    module = sys.modules["oracle"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Files = Sequence[tuple[str, tuple[str, bytes]]]
"""Files of an adapter, as parts of a form."""


class Subject:
    """The server, on one state folder through all its restarts. injector: faults of its disk, its clock, its memory."""

    server: Any  # an oracle's RunningServer; set by each start

    def __init__(self, folder: Path, *flags: str) -> None:
        """Make the model and its adapters, and start the server."""
        oracle = load_oracle()
        self._oracle, self._folder, self._flags = oracle, folder, (*FLAGS, *flags)
        self._starts = self._uploads = 0
        self.state = folder / "state"
        self.injector = Injector.make(folder, self.state)
        self.model = oracle.tiny_model("llama", 1, folder / BASE)
        self.sources = oracle.varied_adapters(self.model, folder / "adapters", seed=50)[: len(STAYING)]
        self.contents: dict[str, int] = {}  # name to index in `sources`, of adapters that may be there
        self.answers: dict[str, list[int]] = {}
        self.error_seconds: list[float] = []  # after an engine's death, until the last request had its error
        self.start()

    def start(self) -> None:
        """Start the server, again if it has ended."""
        self._begin(self._oracle.RunningServer.start)

    def launch(self) -> None:
        """Start the server, and do not wait until it is ready."""
        self._begin(self._oracle.RunningServer.launch)

    def _begin(self, start: Callable[..., Any]) -> None:
        if self._starts:
            self.server.client.close()
        self.log = self._folder / f"server-{self._starts}.log"
        self._starts += 1
        self.server = start(self.model, self.state, self.log, *self._flags, environment=self.injector.environment)

    async def restart(self) -> None:
        """End the server as an operator does, and start the next one."""
        assert await asyncio.to_thread(self.server.stop) == 0, self.log.read_text()[-5000:]
        await asyncio.to_thread(self.start)

    def stop(self) -> None:
        self.injector.disarm()
        self.server.stop()

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncClient(base_url=self.server.url, timeout=PATIENCE, limits=limits)

    async def settle_in(self) -> None:
        """Upload the adapters that stay, and note what everything answers."""
        async with self.client() as client:
            for index, name in enumerate(STAYING):
                assert (await self.upload(client, name, index, fresh=False)).status_code == 201
            assert (await client.put("/v1/default-adapter", json={"adapter": DEFAULT})).status_code == 200
            for name in (BASE, *STAYING):
                self.answers[name] = tokens(await ask(client, name))
        assert len({*map(tuple, self.answers.values())}) == len(self.answers), "the adapters answer alike"

    async def upload(self, client: httpx.AsyncClient, name: str, index: int, *, fresh: bool = True) -> httpx.Response:
        """Upload one of the contents under a name. fresh: as files that are not there yet."""
        self.contents[name] = index
        files = self.fresh_files(index) if fresh else self._files(index)
        return await client.post("/v1/adapters", data={"name": name}, files=files)

    def fresh_files(self, index: int) -> Files:
        """Return one of the contents as files to upload that are not there yet."""
        self._uploads += 1
        return self._files(index)

    def _files(self, index: int) -> Files:
        files: Files = self._oracle.adapter_files(self.sources[index], b" " * self._uploads)
        return files

    async def check(self, *, gone: Collection[str] = (), there: Collection[str] = ()) -> None:
        """Check that the server is as it was: what stays, each answer, the files. Raises AssertionError.

        gone: adapters whose deletion was acknowledged. there: those whose upload was.
        """
        self.injector.disarm()
        await until(self._is_ready, "be ready")
        async with self.client() as client:
            cards = (await client.get("/v1/adapters")).json()["data"]
            names = {card["name"] for card in cards}
            assert {*STAYING, *there} <= names <= self.contents.keys() - {*gone}
            assert (await client.get("/v1/default-adapter")).json() == {"adapter": DEFAULT}
            for name in (BASE, *sorted(names)):
                found = tokens(await ask(client, name))
                assert found == self.answers[name if name == BASE else STAYING[self.contents[name]]], name
            assert tokens(await ask(client, "default")) == self.answers[DEFAULT]
        report = await asyncio.to_thread(maintenance.check, self.state)
        assert (report.damaged, report.found) == ([], [])

    async def clear(self) -> None:
        """Delete what does not stay, and wait until its files have gone."""
        async with self.client() as client:
            for card in (await client.get("/v1/adapters")).json()["data"]:
                if card["name"] not in STAYING:
                    assert (await client.delete(f"/v1/adapters/{card['name']}")).status_code == 200

        async def is_clear() -> bool:
            return len([*(self.state / "adapters").iterdir()]) == len(STAYING) and not self.staged()

        await until(is_clear, "delete files of what is gone")
        self.contents = {name: index for name, index in self.contents.items() if name in STAYING}

    def workers(self) -> list[int]:
        """Return the process ids of the API processes beside the first."""
        found = []
        for task in Path(f"/proc/{self.server.process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # one that ends while it is looked at
                found += [int(child) for child in task.read_text().split()]
        return [child for child in found if is_running(child) and b"server.api.worker" in _command(child)]

    def logged(self, since: int = 0) -> str:
        """Return what the server has logged, behind so many characters."""
        return self.log.read_text(errors="replace")[since:]

    def staged(self) -> list[Path]:
        return [*(self.state / "staging").iterdir()]

    async def _is_ready(self) -> bool:
        assert self.server.process.poll() is None, self.log.read_text()[-5000:]
        try:
            async with self.client() as client:
                return (await client.get("/health/ready")).status_code == 200
        except httpx.TransportError:
            return False


async def ask(client: httpx.AsyncClient, model: str, **more: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": model, **OPTIONS, **more})


def tokens(response: httpx.Response) -> list[int]:
    """Return the tokens of a whole answer. Raises AssertionError for any other."""
    assert response.status_code == 200, response.text
    found: list[int] = response.json()["choices"][0]["token_ids"]
    return found


def digest_of_files(files: Files) -> str:
    """Return the digest that an adapter has in the store."""
    return digest_of({name: hashlib.sha256(content).hexdigest() for _, (name, content) in files})


def check_envelope(response: httpx.Response, *, may_fail: bool = False) -> None:
    """Check that an error is OpenAI's, and of the server's own only where it `may_fail`. Raises AssertionError."""
    status = response.status_code
    assert may_fail or status < 500, f"{status}: {response.text[:500]}"
    if status >= 400:
        error = response.json()["error"]
        wanted = {"message", "type"} if "/v1/messages" in str(response.url) else {"message", "type", "param", "code"}
        assert {*error} >= wanted, error
        assert error["message"], error
        assert "Traceback" not in response.text
        assert status < 500 or error["type"] == "server_error" or error.get("code") in PASSING, error


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition. Raises AssertionError after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain for the server to {what}"
        await asyncio.sleep(0.1)
