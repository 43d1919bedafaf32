"""The child process of a job, with small modules in its place."""

import asyncio
import os
from pathlib import Path

import pytest

from peftserve.server.api.jobs.child import run_child

ECHO = """
import os, sys
line = sys.stdin.readline()
print(line.strip().upper(), flush=True)
print(os.environ["OMP_NUM_THREADS"], flush=True)
sys.exit(3)
"""
FOREVER = """
import os, sys
sys.stdin.readline()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "child_of_a_job.py"


async def test_a_child_gets_a_line_and_answers_in_lines(module: Path) -> None:
    module.write_text(ECHO)
    lines: list[bytes] = []
    assert await run_child(module.stem, b"order", lines.append) == 3
    assert lines == [b"ORDER\n", b"1\n"]


async def test_a_child_that_nobody_waits_for_is_killed(module: Path) -> None:
    module.write_text(FOREVER)
    lines: list[bytes] = []
    task = asyncio.create_task(run_child(module.stem, b"order", lines.append))
    while not lines:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[0]), 0)
