"""A power cut at each call with which an operation changes the disk, and right after what was said of it.

As `crashes`, but for what the disk has afterwards: not what was written, but what `power` leaves of it. Runs in a
process of its own: `python -m tests.faults.power_cuts FOLDER …`.
"""

import asyncio
import json
import logging
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

from peftserve.adapters.errors import AdapterError

from .crashes import (
    ACKNOWLEDGED,
    CRASH,
    DISK,
    DONE,
    MOST_FINDINGS,
    SETTLED,
    TEMPLATE,
    Case,
    Fault,
    difference,
    goes_on,
    in_process,
)
from .injector import Injector, Mode
from .operations import OFFLINE, fill
from .power import LOSSES, VARIABLE, Loss, Shadow
from .states import Snapshot, delete_registry, opened, reopened, snapshot

LEFT = "left"


class Moment(NamedTuple):
    """When the power goes. call: before this call, from 1; 0: when the operation has said `said`."""

    call: int = 0
    said: bytes = b""

    def __str__(self) -> str:
        return f"call {self.call}" if self.call else f"after {_STAGES[self.said]}"


_STAGES = {
    ACKNOWLEDGED: "the acknowledgement",
    SETTLED: "what the acknowledgement has left to the background",
    DONE: "the end of the process's work",
}


class PowerCase(Case):
    """One operation on one folder, cut off from power."""

    def __init__(self, folder: Path, name: str, injector: Injector) -> None:
        self._shadow = Shadow.of_environment(folder / DISK)
        self._left = folder / LEFT
        super().__init__(folder, name, injector)
        self._copy()
        self._rebuilt_before = asyncio.run(_rebuilt(self._root))
        self._copy()
        self._run(Fault(Mode.OFF), 1)
        self._rebuilt_after = asyncio.run(_rebuilt(self._root))

    def moments(self) -> Iterator[Moment]:
        """Iterate over all moments, those after the operation first."""
        yield Moment(said=ACKNOWLEDGED)
        if self._name not in OFFLINE:
            yield Moment(said=SETTLED)
        yield Moment(said=DONE)
        yield from (Moment(call) for call in range(1, self.calls + 1))

    def cut(self, moment: Moment) -> Iterator[tuple[Loss, str]]:
        """Cut the power at a moment. Yields what is wrong after each loss that is not outlived."""
        self._copy()
        self._shadow.begin()
        _, said = self._run(CRASH if moment.call else Fault(Mode.OFF), moment.call, moment.said)
        assert said.endswith(moment.said), f"the process has died of it: {said!r}"
        for loss, check in product(LOSSES, (self._check_cut, self._check_rebuilt)):
            self._shadow.cut(loss, (self._name, moment), self._left)
            try:
                check(self._left / self._root.name, said)
            except (AssertionError, RuntimeError, AdapterError, OSError, sqlite3.Error) as error:
                yield loss, f"{type(error).__name__}: {error}"

    def _check_cut(self, root: Path, said: bytes) -> None:
        self._check_left(root, said)
        asyncio.run(_continue(root))

    def _check_rebuilt(self, root: Path, said: bytes) -> None:
        """Check what the cut leaves where it takes the registry as well, of which all is kept beside it."""
        found = asyncio.run(_rebuilt(root))
        if ACKNOWLEDGED in said:
            assert found == self._rebuilt_after, f"not beside the registry: {difference(found, self._rebuilt_after)}"
        _check_between(found, self._rebuilt_before, self._rebuilt_after)


def _check_between(found: Snapshot, before: Snapshot, after: Snapshot) -> None:
    """Check each thing by itself: files beside the registry are written one after the other."""
    for part, one, other in zip(found, before, after, strict=True):
        if isinstance(part, str):
            assert part in (one, other), f"neither as before nor as after: {part}"
        else:
            for name in {*part, *one, *other}:
                assert part.get(name) in (one.get(name), other.get(name)), f"neither as before nor as after: {name}"


async def _rebuilt(root: Path) -> Snapshot:
    """Start on a folder without its registry. Returns what is back: all but what was deleted and can be restored."""
    delete_registry(root)
    async with opened(root) as state:
        return snapshot(state)


async def _continue(root: Path) -> None:
    """Check that what was left is no hindrance. Raises AssertionError."""
    before = await reopened(root)
    async with opened(root) as state:
        await goes_on(state)
    assert await reopened(root) == before


def run(folder: Path, names: list[str], most_calls: int) -> Iterator[dict[str, object]]:
    """Run all cases. Yields a finding for each cut that something has not outlived, and a summary of each case.

    most_calls: cuts during an operation, spread over it.
    """
    injector = Injector.of_environment()
    asyncio.run(fill(folder / TEMPLATE))
    for name in names:
        case = PowerCase(folder, name, injector)
        moments = list(_spread(case, most_calls))
        yield from islice(_findings(case, name, moments), MOST_FINDINGS)
        yield {"operation": name, "calls": case.calls, "points": len(moments) * len(LOSSES)}


def _spread(case: PowerCase, most_calls: int) -> Iterator[Moment]:
    step = -(-case.calls // most_calls)
    return (moment for moment in case.moments() if not moment.call or (case.calls - moment.call) % step == step // 2)


def _findings(case: PowerCase, name: str, moments: list[Moment]) -> Iterator[dict[str, object]]:
    for moment in moments:
        for loss, why in case.cut(moment):
            yield {"operation": name, "fault": f"{moment} of {case.calls}, {loss.what} lost", "why": why}


def find(folder: Path, operations: Iterable[str], most_calls: int) -> list[dict[str, object]]:
    """Run cases in a process of their own. Returns what `run` yields."""
    return in_shadow("tests.faults.power_cuts", folder, [json.dumps([*operations]), str(most_calls)])


def in_shadow(module: str, folder: Path, arguments: Sequence[str]) -> list[dict[str, object]]:
    """Run a module as `in_process`, with a shadow of the disk."""
    shadow = folder / "shadow"
    shadow.mkdir()
    return in_process(module, folder, arguments, {VARIABLE: str(shadow)})


def main(folder: str, operations: str, most_calls: str) -> None:
    """operations: a JSON list."""
    logging.disable(logging.CRITICAL)
    for line in run(Path(folder), json.loads(operations), int(most_calls)):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
