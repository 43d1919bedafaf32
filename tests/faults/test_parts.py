"""Each part of the faults, in a few rounds, on one real server that has to outlive them all."""

import asyncio
import random
from collections.abc import Iterator

import pytest

from .parts import PARTS
from .subject import Subject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.cpu_only("the faults are those of a CPU's server"),
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    subject = Subject(tmp_path_factory.mktemp("faults"))
    try:
        asyncio.run(subject.settle_in())
        yield subject
    finally:
        subject.stop()


@pytest.mark.parametrize("name", PARTS)
async def test_a_server_outlives(name: str, subject: Subject, request: pytest.FixtureRequest) -> None:
    part = PARTS[name]
    if part.injected and not subject.injector.is_loaded:
        pytest.skip("there is no C compiler for the library that gives faults")
    await part.run(subject, random.Random(name), part.few)
