from pathlib import Path
from typing import Any

import pytest

from benchmarks.swap.copies import Copies
from benchmarks.swap.server import MeasuredServer
from peftserve.server.cli.errors import CommandError


async def test_copies_come_and_go(tiered: Any, folder: Path) -> None:
    async with MeasuredServer(tiered.url + "/v1", None, Copies(folder), keep=False) as server:
        names = await server.register(6)
        assert len(set(tiered.contents.values())) == 6
        states = await server.states()
        assert sorted(states) == names
        assert sorted(states.values()) == ["disk"] * 2 + ["host"] * 4
        assert (await server.ask(names[0], 3)).num_tokens == 3
        assert (await server.states())[names[0]] == "device"
        assert await server.loads() == 1
        with pytest.raises(CommandError, match="no such model"):
            await server.ask("nobody")
    assert not tiered.contents


async def test_what_a_server_that_ends_keeps(tiered: Any, folder: Path) -> None:
    async with MeasuredServer(tiered.url, None, Copies(folder), keep=True) as server:
        await server.register(1)
    assert len(tiered.contents) == 1


async def test_no_server(folder: Path) -> None:
    async with MeasuredServer("http://127.0.0.1:9", None, Copies(folder), keep=True) as server:
        with pytest.raises(CommandError, match="no answer"):
            await server.upload()
