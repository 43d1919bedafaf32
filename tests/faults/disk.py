"""Faults of the server's own machine: its disk, while adapters are uploaded, deleted, chosen and read."""

import errno
import random
from collections.abc import Awaitable, Callable

import httpx

from .injector import EVER, Calls
from .subject import BASE, DEFAULT, STAYING, Subject, ask, check_envelope, tokens

KINDS = (
    (Calls.CHANGES & ~Calls.REMOVE, errno.ENOSPC),
    (Calls.CHANGES, errno.EROFS),
    (Calls.SYNC, errno.EIO),
    (Calls.WRITE, errno.EIO),
    (Calls.RENAME, errno.EIO),
    (Calls.WRITE | Calls.CREATE, errno.EDQUOT),
)
FURTHEST = 20  # of calls, at which one fault comes

Ask = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


async def change(subject: Subject, draw: random.Random, rounds: int) -> None:
    """Let the disk fail while it is written to: all at once, or at one call. Requests that need no disk go on."""
    there: set[str] = set()
    for turn in range(rounds):
        calls, error = KINDS[turn % len(KINDS)] if turn < len(KINDS) else draw.choice(KINDS)
        name = f"d{turn}"
        first = draw.choice((1, draw.randrange(1, FURTHEST)))
        async with subject.client() as client:
            with subject.injector.failing(calls, error, first=first, last=draw.choice((first, EVER))):
                check_envelope(await subject.upload(client, name, turn % len(STAYING)), may_fail=True)
                assert tokens(await ask(client, BASE)) == subject.answers[BASE]
                for answer in (
                    await client.put("/v1/default-adapter", json={"adapter": DEFAULT}),
                    await client.put("/v1/routes/r", json={"kind": "alias", "target": "a0"}),
                    await client.delete(f"/v1/adapters/{name}"),
                ):
                    check_envelope(answer, may_fail=True)
            assert subject.injector.count > 0, "the fault has had no chance"
            again = await subject.upload(client, name, turn % len(STAYING))
            assert again.status_code == 201, "the disk is well again"
            assert (await client.put("/v1/routes/r", json={"kind": "alias", "target": "a0"})).status_code in (200, 201)
        there.add(name)
        await subject.check(there=there)
    await subject.restart()  # which deletes what could not be deleted
    await subject.check(there=there)
    await subject.clear()


async def read(subject: Subject, draw: random.Random, rounds: int) -> None:
    """Let adapters' files be unreadable for a while: that says nothing of what is in them."""
    for _ in range(rounds):
        async with subject.client() as client:
            for name in STAYING[:2]:  # there are two places, so that the third one is on the disk
                tokens(await ask(client, name))
            with subject.injector.failing(Calls.READ, errno.EIO, part="/adapters/", first=draw.randrange(1, 4)):
                for name in draw.sample(STAYING, len(STAYING)):
                    check_envelope(await ask(client, name), may_fail=True)
                assert tokens(await ask(client, BASE)) == subject.answers[BASE]
        await subject.check()


async def allocate(subject: Subject, draw: random.Random, rounds: int) -> None:
    """Let the engine have no memory: in a step, a compilation, a load."""
    pid = subject.server.engine_pid()
    for turn in range(rounds):
        name = f"m{turn}"
        async with subject.client() as client:
            first = draw.randrange(1, 40)
            with subject.injector.failing(
                Calls.ALLOCATE, pid=pid, first=first, last=first + draw.choice((0, 10)), least_bytes=64
            ):
                for model in (BASE, draw.choice(STAYING)):
                    check_envelope(await ask(client, model), may_fail=True)
                check_envelope(await subject.upload(client, name, turn % len(STAYING)), may_fail=True)
            assert subject.injector.given > 0, "the fault has not come"
        await subject.check()
    assert subject.server.engine_pid() == pid, "the engine has died of it"
    await subject.clear()
