"""A bit that flips anywhere in a state folder: a repair says what it has set aside, and all the rest is served.

Without a server: the folder is copied, harmed, mended and opened in this process.
"""

import asyncio
import random
import shutil
from pathlib import Path

from peftserve.adapters import maintenance

from .operations import fill
from .states import Snapshot, opened, snapshot


def run(folder: Path, draw: random.Random, rounds: int) -> None:
    """Flip so many bits, one at a time. Raises AssertionError."""
    template, root = folder / "template", folder / "state"
    asyncio.run(fill(template))
    before = asyncio.run(_opened(template))
    for _ in range(rounds):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root)
        harmed = draw.choice(sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size))
        place = draw.randrange(harmed.stat().st_size * 8)
        _flip(harmed, place)
        try:
            _check(root, before, harmed.relative_to(root))
        except AssertionError as error:
            raise AssertionError(f"bit {place} of {harmed.relative_to(root)}: {error}") from error


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)


def _check(root: Path, before: Snapshot, harmed: Path) -> None:
    """Mend a folder, and check that what was harmed is set aside and nothing else. Raises AssertionError."""
    maintenance.repair(root)
    found = asyncio.run(_opened(root))
    assert found.versions == before.versions
    report = maintenance.check(root)
    assert report.found == []
    lost = {harmed.parts[1]} if harmed.parts[0] == "adapters" else set()
    assert {ref.digest for ref in report.damaged} == lost & {*before.versions.values()}


async def _opened(root: Path) -> Snapshot:
    async with opened(root) as state:
        return snapshot(state)
