"""A crash of a whole server at each sync and each rename with which an operation changes the state folder.

The server is a real one, asked over HTTP. The call kills the process that makes it, and at once all others are killed,
as a machine goes down with them. The next server on the same folder has to be ready with all that was acknowledged, and
with all or nothing of what was not. One folder goes through all crashes; each operation is on a name of its own.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self, TypeVar

import httpx

from peftserve.adapters.registry_file import NAME as REGISTRY
from peftserve.adapters.store import ADAPTERS

from . import states
from .injector import Calls, Mode
from .server_operations import (
    AT_ONCE,
    CHANGES,
    DEFAULTED,
    REPAIRS,
    Change,
    Served,
    blank,
    served,
    set_default,
    take_found,
    upload,
)
from .subject import (
    BASE,
    DEFAULT,
    PATIENCE,
    STAYING,
    Files,
    Subject,
    ask,
    check_envelope,
    digest_of_files,
    tokens,
    until,
)

FLAGS = ("--api-workers", "1")  # of the server: the first process and the engine are what writes
CALLS = Calls.SYNC | Calls.RENAME
FIRST, SECOND = 0, 1  # contents of the adapter that an operation is on

_T = TypeVar("_T")


class Crashes:
    """Crashes of one server. Made by `of`."""

    def __init__(self, subject: Subject, staying: Served) -> None:
        self._subject = subject
        self._turn = 0
        self._answers = {staying[f"{name}@1"]: subject.answers[name] for name in STAYING}  # by digest

    @classmethod
    async def of(cls, subject: Subject) -> Self:
        """Let a server settle in."""
        await subject.settle_in()
        async with subject.client() as client:
            return cls(subject, await served(client))

    async def crash_at_every_call(self, operation: str) -> int:
        """Crash at each call of an operation, and at its end. Returns how many there are. Raises AssertionError."""
        call = 1
        while await self.crash(operation, call):
            call += 1
        return call - 1

    async def crash(self, operation: str, call: int) -> bool:
        """Let a call of one of OPERATIONS be the server's last, and check what the next server finds.

        Returns whether there was such a call: if not, the server was killed when the operation had come to its end.
        Raises AssertionError.
        """
        self._turn += 1
        try:
            if operation in REPAIRS:
                return await self._crash_start(REPAIRS[operation], call)
            changes = [*CHANGES.values()] if operation == AT_ONCE else [CHANGES[operation]]
            return await self._crash_changes(changes, call)
        except Exception as error:
            error.add_note(f"at call {call} of {operation!r}")
            raise

    async def _crash_changes(self, changes: Sequence[Change], call: int) -> bool:
        works, afters = [], []
        async with self._subject.client() as client:
            for number, change in enumerate(changes):
                name = f"c{self._turn}-{number}"
                if change.is_there:
                    await self._upload(client, name, FIRST)
                files = self._files(SECOND)
                works.append(self._asked(change.ask(client, name, files)))
                afters.append(change.after(name, digest_of_files(files)))
            before = await served(client)
            came, acknowledged = await self._until_struck(call, asyncio.gather(*works))
        await asyncio.to_thread(self._subject.start)
        await self._check(before, [*zip(afters, acknowledged, strict=True)])
        return came

    async def _crash_start(self, harm: Callable[[Path], None], call: int) -> bool:
        name = f"c{self._turn}"
        async with self._subject.client() as client:
            for content in (FIRST, SECOND):
                await self._upload(client, name, content)
            assert (await set_default(client, name)).is_success
            before = await served(client)
        self._go_down()
        harm(self._subject.state)
        came, _ = await self._until_struck(call, self._started())
        await asyncio.to_thread(self._subject.start)
        if harm is blank:
            take_found(self._subject.state)
        await self._check(before)
        return came

    async def _until_struck(self, call: int, work: Awaitable[_T]) -> tuple[bool, _T]:
        """Do work until a call kills a process, or all is done, and kill all. Returns which, and the work's result."""
        injector = self._subject.injector
        injector.arm(Mode.KILL_BEFORE, CALLS, first=call)
        task = asyncio.ensure_future(work)
        async with asyncio.timeout(PATIENCE):
            while not injector.given and not (task.done() and await self._is_settled()):
                await asyncio.sleep(0.01)
        came = injector.given > 0
        self._go_down()
        injector.disarm()
        return came, await task

    async def _is_settled(self) -> bool:
        """Return whether nothing is left to delete behind an answer. Changes nothing of what a crash leaves."""
        try:
            with closing(sqlite3.connect(f"file:{self._subject.state / REGISTRY}?mode=ro", uri=True)) as db:
                return db.execute("SELECT digest FROM disposable").fetchone() is None
        except sqlite3.OperationalError:
            return False  # the server has crashed at this moment

    async def _asked(self, asked: Awaitable[httpx.Response]) -> bool:
        """Return whether a request was acknowledged."""
        try:
            answer = await asked
        except httpx.TransportError:
            return False
        check_envelope(answer, may_fail=True)
        assert answer.is_success or answer.is_server_error, answer.text
        return answer.is_success

    async def _started(self) -> bool:
        """Start a server. Returns whether it was ready before it ended."""
        self._subject.launch()
        async with self._subject.client() as client:
            while self._subject.server.process.poll() is None:
                try:
                    if (await client.get("/health/ready")).status_code == 200:
                        return True
                except httpx.TransportError:
                    pass  # nobody listens: it is starting, or has been killed
                await asyncio.sleep(0.05)
        return False

    def _go_down(self) -> None:
        self._subject.injector.kill_all()
        self._subject.server.process.wait()

    def _files(self, content: int) -> Files:
        """Return files to upload, and note what they answer."""
        files = self._subject.fresh_files(content)
        self._answers[digest_of_files(files)] = self._subject.answers[STAYING[content]]
        return files

    async def _upload(self, client: httpx.AsyncClient, name: str, content: int) -> None:
        assert (await upload(client, name, self._files(content))).status_code == 201

    async def _check(self, before: Served, changes: Sequence[tuple[Mapping[str, str | None], bool]] = ()) -> None:
        """Check a server that has started after a crash, and make it what it was before. Raises AssertionError.

        changes: what each would have changed, and whether it was acknowledged.
        """
        async with self._subject.client() as client:
            found = await served(client)
            wanted: dict[str, str | None] = {**before}
            for after, acknowledged in changes:
                if acknowledged or all(found.get(key) == value for key, value in after.items()):
                    wanted |= after
            assert found == {key: value for key, value in wanted.items() if value is not None}
            await self._check_answers(client, found)
            for ref in {*before}.union(*(after for after, _ in changes)) - {*found}:
                assert (await ask(client, ref)).status_code == 404, ref
            await asyncio.to_thread(self._check_folder, found)
            await self._go_on(client)

    async def _check_answers(self, client: httpx.AsyncClient, found: Served) -> None:
        versions = [key for key in found if key != DEFAULTED]
        for ref in versions:
            assert tokens(await ask(client, ref)) == self._answers[found[ref]], ref
        newest = max(ref for ref in versions if ref.startswith(f"{found[DEFAULTED]}@"))
        assert tokens(await ask(client, "default")) == self._answers[found[newest]]
        assert tokens(await ask(client, BASE)) == self._subject.answers[BASE]

    def _check_folder(self, found: Served) -> None:
        states.check(self._subject.state)
        stored = {path.name for path in (self._subject.state / ADAPTERS).iterdir()}
        assert stored == {found[key] for key in found if key != DEFAULTED}, "files of no version, or none for one"

    async def _go_on(self, client: httpx.AsyncClient) -> None:
        """Upload one more adapter, use it, and delete all that do not stay."""
        name = f"later-{self._turn}"
        await self._upload(client, name, SECOND)
        assert tokens(await ask(client, name)) == self._subject.answers[STAYING[SECOND]]
        assert (await set_default(client, DEFAULT)).is_success
        await self._subject.clear()
        await until(self._is_settled, "note what it has deleted")
