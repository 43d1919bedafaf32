"""A crash at some calls of all operations of a real server. `make faults` crashes it at all calls of each."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from .injector import compiler
from .server_crashes import FLAGS, Crashes
from .server_operations import AT_ONCE
from .subject import Subject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.cpu_only("the faults are those of a CPU's server"),
    pytest.mark.skipif(compiler() is None, reason="there is no C compiler for the library that gives faults"),
]

POINTS = ((AT_ONCE, 11), (AT_ONCE, 22), ("start on a damaged registry", 8))


@pytest.fixture
def subject(quick_folder: Path) -> Iterator[Subject]:
    subject = Subject(quick_folder, *FLAGS)
    try:
        yield subject
    finally:
        subject.injector.kill_all()
        subject.stop()


def test_a_server_that_crashes_amid_an_operation_has_all_of_it_or_nothing(subject: Subject) -> None:
    asyncio.run(_crash(subject))


async def _crash(subject: Subject) -> None:
    crashes = await Crashes.of(subject)
    for operation, call in POINTS:
        assert await crashes.crash(operation, call), f"{operation}: over before call {call}"
