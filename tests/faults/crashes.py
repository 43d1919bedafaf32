"""A crash, or an error, at each call with which an operation changes the disk, on a state folder without a model.

Runs in a process of its own, which `shim.c` is loaded into: `python -m tests.faults.crashes FOLDER …`. For each call it
forks a child, which opens a copy of the folder, lets the fault come at that call, and says through a pipe what it would
have told its client. Then the folder is opened again, and has to be as before or as after, and in order.
"""

import asyncio
import errno
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from peftserve.adapters.errors import AdapterError

from .injector import EVER, Calls, Injector, Mode
from .operations import OFFLINE, OPERATIONS, PREPARATIONS, fill
from .states import Opened, Snapshot, files, opened, reopened, snapshot

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE, DISK = "template", "disk"
MOST_FINDINGS = 3  # of one fault: others are mostly the same
ACKNOWLEDGED, REFUSED, SETTLED, DONE = b"a", b"r", b"s", b"d"


class Fault(NamedTuple):
    """mode: what happens. error: errno of a call that fails. lasting: whether all later calls fail, too."""

    mode: Mode
    error: int = 0
    lasting: bool = False

    def __str__(self) -> str:
        name = errno.errorcode[self.error] if self.error else self.mode.name
        return f"{name}{' from' if self.lasting else ' at'}"


CRASH = Fault(Mode.KILL_BEFORE)
FAULTS = (
    CRASH,
    *(
        Fault(Mode.FAIL, error, lasting)
        for error in (errno.ENOSPC, errno.EIO, errno.EROFS)
        for lasting in (False, True)
    ),
)


class Case:
    """One operation on one folder. before, after: what is there without it, and with it."""

    def __init__(self, folder: Path, name: str, injector: Injector) -> None:
        self._template, self._root = folder / TEMPLATE, folder / DISK / "state"
        self._name = name
        self._injector = injector
        self.before, self._files_before = self._without()
        self._copy()
        self.calls, said = self._run(Fault(Mode.OFF), 1)
        assert said.replace(SETTLED, b"") == ACKNOWLEDGED + DONE, said
        self.after = asyncio.run(reopened(self._root))
        self._files_after = files(self._root)

    def _without(self) -> tuple[Snapshot, set[str]]:
        self._copy()
        return asyncio.run(reopened(self._root)), files(self._root)

    def _copy(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(self._template, self._root)
        if self._name in PREPARATIONS:
            asyncio.run(PREPARATIONS[self._name](self._root))

    def check(self, fault: Fault, call: int) -> None:
        """Let a fault come at a call, and check what it has left. Raises AssertionError."""
        self._copy()
        _, said = self._run(fault, call)
        assert fault is CRASH or said.endswith(DONE), f"the process has died of it: {said!r}"
        self._check_left(self._root, said)

    def _check_left(self, root: Path, said: bytes) -> None:
        """Start on what is left, and check it against what was said. Raises AssertionError."""
        found = asyncio.run(reopened(root))
        if ACKNOWLEDGED in said:
            assert found == self.after, f"acknowledged and lost: {difference(found, self.after)}"
        check_either(found, self.before, self.after)
        left = files(root)
        assert left in (self._files_before, self._files_after), sorted(left ^ self._files_after)

    def _run(self, fault: Fault, call: int, last: bytes = b"") -> tuple[int, bytes]:
        """Run the operation in a child. Returns how many calls were counted, and what the child has said.

        last: the child is killed as soon as it has said this.
        """
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self._be_child(fault, call, partial(_say, theirs, last))
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)
        with open(ours, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        self._injector.disarm()
        return self._injector.count, said

    def _be_child(self, fault: Fault, call: int, say: Callable[[bytes], object]) -> None:
        logging.disable(logging.CRITICAL)

        def arm() -> None:
            last = EVER if fault.lasting else call
            self._injector.arm(fault.mode, Calls.CHANGES, error=fault.error, first=call, last=last)

        try:
            asyncio.run(self._offline(arm, say) if self._name in OFFLINE else self._online(fault, arm, say))
            say(DONE)
        except BaseException:
            say(traceback.format_exc().encode())

    async def _offline(self, arm: Callable[[], None], say: Callable[[bytes], object]) -> None:
        arm()
        await _tell(OFFLINE[self._name](self._root), say)
        self._injector.disarm()

    async def _online(self, fault: Fault, arm: Callable[[], None], say: Callable[[bytes], object]) -> None:
        async with opened(self._root) as state:
            arm()
            await _tell(OPERATIONS[self._name](state), say)
            await state.library.settled()
            say(SETTLED)
            self._injector.disarm()
            await goes_on(state)
            if fault.mode is not Mode.OFF:
                check_either(snapshot(state), self.before, self.after)


def _say(pipe: int, last: bytes, what: bytes) -> None:
    os.write(pipe, what)
    if what == last:
        os.kill(os.getpid(), signal.SIGKILL)


async def _tell(work: Awaitable[object], say: Callable[[bytes], object]) -> None:
    """Do the work, and say how a server would have answered."""
    try:
        await work
    except (AdapterError, OSError, sqlite3.Error):
        say(REFUSED)
    else:
        say(ACKNOWLEDGED)


async def goes_on(state: Opened) -> None:
    """Check that what failed has left nothing in the way of what comes next."""
    await state.upload("later", "7")
    await state.library.delete("later", purge=True)
    await state.library.settled()


def check_either(found: Snapshot, before: Snapshot, after: Snapshot) -> None:
    for name, part, one, other in zip(Snapshot._fields, found, before, after, strict=True):
        assert part in (one, other), f"{name}, neither as before nor as after: {part}"


def difference(found: Snapshot, wanted: Snapshot) -> list[tuple[object, object]]:
    return [(one, other) for one, other in zip(found, wanted, strict=True) if one != other]


def run(folder: Path, names: list[str], faults: list[Fault]) -> Iterator[dict[str, object]]:
    """Run all cases. Yields a finding for each fault that something has not outlived, and a summary of each case."""
    injector = Injector.of_environment()
    asyncio.run(fill(folder / TEMPLATE))
    for name in names:
        case = Case(folder, name, injector)
        for fault in faults:
            yield from islice(_findings(case, name, fault), MOST_FINDINGS)
        yield {"operation": name, "calls": case.calls, "points": case.calls * len(faults)}


def _findings(case: Case, name: str, fault: Fault) -> Iterator[dict[str, object]]:
    for call in range(1, case.calls + 1):
        try:
            case.check(fault, call)
        except AssertionError as error:
            yield {"operation": name, "fault": f"{fault} call {call} of {case.calls}", "why": str(error)}


def find(folder: Path, operations: Iterable[str], faults: Iterable[Fault]) -> list[dict[str, object]]:
    """Run cases in a process of their own. Returns what `run` yields."""
    arguments = [json.dumps([*operations]), json.dumps([FAULTS.index(fault) for fault in faults])]
    return in_process("tests.faults.crashes", folder, arguments, {})


def in_process(
    module: str, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
) -> list[dict[str, object]]:
    """Run a module with `shim.c` for what it does to the disk of a new folder. Returns the lines of JSON it prints."""
    work = folder / "work"
    (work / DISK).mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", module, str(work), *arguments],
        env={**Injector.make(folder, work / DISK).environment, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main(folder: str, operations: str, faults: str) -> None:
    """operations, faults: JSON lists; faults: indices into FAULTS."""
    logging.disable(logging.CRITICAL)
    chosen = [FAULTS[i] for i in json.loads(faults)]
    for line in run(Path(folder), json.loads(operations), chosen):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
