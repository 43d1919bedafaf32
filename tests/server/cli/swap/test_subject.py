from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli.errors import CommandError
from peftserve.server.cli.swap.copies import Copies
from peftserve.server.cli.swap.subject import Subject


async def test_copies_come_and_go(tiered: Any, folder: Path) -> None:
    async with Subject(tiered.url + "/v1", None, Copies(folder), keep=False) as subject:
        names = await subject.register(6)
        assert len(set(tiered.contents.values())) == 6
        states = await subject.states()
        assert sorted(states) == names
        assert sorted(states.values()) == ["disk"] * 2 + ["host"] * 4
        assert (await subject.ask(names[0], 3)).num_tokens == 3
        assert (await subject.states())[names[0]] == "device"
        assert await subject.loads() == 1
        with pytest.raises(CommandError, match="no such model"):
            await subject.ask("nobody")
    assert not tiered.contents


async def test_what_a_server_that_ends_keeps(tiered: Any, folder: Path) -> None:
    async with Subject(tiered.url, None, Copies(folder), keep=True) as subject:
        await subject.register(1)
    assert len(tiered.contents) == 1


async def test_no_server(folder: Path) -> None:
    async with Subject("http://127.0.0.1:9", None, Copies(folder), keep=True) as subject:
        with pytest.raises(CommandError, match="no answer"):
            await subject.upload()
