"""Give faults for as long as asked: `python -m tests.faults --minutes 30 --seed 1 [--only PART …]`.

Each turn does every part many times, with a seed of its own that is printed: with `--seed` it comes again.
"""

import argparse
import asyncio
import itertools
import logging
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from . import crashes, flips, power_cuts, server_crashes
from .injector import EVER, compiler
from .operations import OFFLINE, OPERATIONS
from .parts import PARTS
from .server_operations import OPERATIONS as SERVER_OPERATIONS
from .subject import Subject

CRASHES, POWER_CUTS, FLIPS, SERVER_CRASHES = "crashes", "power-cuts", "flips", "server-crashes"
MANY_FLIPS = 1000
MOST_LOG = 5000  # characters of the server's that are shown


def main() -> int:
    arguments = _arguments()
    chosen = arguments.only or [CRASHES, POWER_CUTS, FLIPS, SERVER_CRASHES, *PARTS]
    deadline = time.monotonic() + arguments.minutes * 60
    with tempfile.TemporaryDirectory(prefix="faults-", dir=arguments.folder) as folder:
        for name, find in (CRASHES, _crash), (POWER_CUTS, _cut):
            if name in chosen and not _find(name, find, Path(folder) / name):
                return 1
        if FLIPS in chosen and not _flip(Path(folder), arguments.seed):
            return 1
        if SERVER_CRASHES in chosen and not asyncio.run(_crash_server(Path(folder) / SERVER_CRASHES)):
            return 1
        names = [name for name in chosen if name in PARTS]
        return 0 if not names or asyncio.run(_serve(Path(folder), names, arguments.seed, deadline)) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Faults that a server has to outlive.")
    names = [CRASHES, POWER_CUTS, FLIPS, SERVER_CRASHES, *PARTS]
    parser.add_argument("--minutes", type=float, default=10, help="how long; each part comes once at least (10)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"some of {', '.join(names)}")
    parser.add_argument("--folder", help="where state folders are made; in memory (/dev/shm) syncs cost nothing")
    return parser.parse_args()


def _crash(folder: Path) -> list[dict[str, object]]:
    """Run all faults at all calls of all operations. Returns the findings and summaries."""
    return crashes.find(folder, [*OPERATIONS, *OFFLINE], crashes.FAULTS)


def _cut(folder: Path) -> list[dict[str, object]]:
    """Cut the power at all calls of all operations, and after each. Returns the findings and summaries."""
    return power_cuts.find(folder, [*OPERATIONS, *OFFLINE], EVER)


def _find(name: str, find: Callable[[Path], list[dict[str, object]]], folder: Path) -> bool:
    """Run a part that needs the library, and print what it finds. Returns whether everything was in order."""
    if compiler() is None:
        print(f"{name}: left out, as there is no C compiler")
        return True
    folder.mkdir()
    begun = time.monotonic()
    lines = find(folder)
    found = [line for line in lines if "why" in line]
    for line in found:
        print(f"{name}: {line['operation']}: {line['fault']}: {line['why']}")
    points = sum(int(str(line["points"])) for line in lines if "points" in line)
    operations, seconds = len(lines) - len(found), time.monotonic() - begun
    print(f"{name}: {points} faults at the calls of {operations} operations, {seconds:.0f} s", flush=True)
    return not found


def _flip(folder: Path, seed: int) -> bool:
    """Flip bits of a state folder. Returns whether everything was in order."""
    logging.disable(logging.ERROR)
    begun = time.monotonic()
    try:
        flips.run(folder / FLIPS, random.Random(seed), MANY_FLIPS)
    except AssertionError as error:
        print(f"flips: {error}; again by --only flips --seed {seed}", flush=True)
        return False
    finally:
        logging.disable(logging.NOTSET)
    print(f"flips: {MANY_FLIPS} bits of seed {seed}, {time.monotonic() - begun:.0f} s", flush=True)
    return True


async def _crash_server(folder: Path) -> bool:
    """Crash a server at all calls of all operations. Returns whether everything was in order."""
    if compiler() is None:
        print(f"{SERVER_CRASHES}: left out, as there is no C compiler")
        return True
    folder.mkdir()
    subject = Subject(folder, *server_crashes.FLAGS)
    try:
        crashes_of_server = await server_crashes.Crashes.of(subject)
        for operation in SERVER_OPERATIONS:
            begun = time.monotonic()
            calls = await crashes_of_server.crash_at_every_call(operation)
            print(f"{SERVER_CRASHES}: {operation}: {calls} calls, {time.monotonic() - begun:.0f} s", flush=True)
        return True
    except Exception:
        _print_failure(subject)
        return False
    finally:
        subject.injector.kill_all()  # one that is starting, too
        subject.stop()


async def _serve(folder: Path, names: Sequence[str], seed: int, deadline: float) -> bool:
    """Run parts on one server, turn by turn. Returns whether everything was in order."""
    subject = Subject(folder)
    try:
        await subject.settle_in()
        turns = ((turn, name) for turn in itertools.count() for name in names)
        turn, name = next(turns)
        while await _run(subject, name, seed + turn):
            turn, name = next(turns)
            if turn and time.monotonic() > deadline:
                return True
        return False
    finally:
        _print_deaths(subject)
        subject.stop()


async def _run(subject: Subject, name: str, seed: int) -> bool:
    part, begun = PARTS[name], time.monotonic()
    if part.injected and not subject.injector.is_loaded:
        return True
    try:
        await part.run(subject, random.Random(f"{name} {seed}"), part.many)
    except Exception:
        _print_failure(subject)
        print(f"{name}: not outlived; again by --only {name} --seed {seed}", flush=True)
        return False
    print(f"{name}: {part.many} rounds of seed {seed}, {time.monotonic() - begun:.0f} s", flush=True)
    return True


def _print_failure(subject: Subject) -> None:
    """Print the error that is being handled, and what the server has said."""
    traceback.print_exc()
    print(f"The server's log ends:\n{subject.log.read_text()[-MOST_LOG:]}", file=sys.stderr)


def _print_deaths(subject: Subject) -> None:
    if subject.error_seconds:
        slowest = max(subject.error_seconds)
        print(
            f"{len(subject.error_seconds)} deaths of an engine; requests had their error after {slowest:.2f} s at most"
        )


if __name__ == "__main__":
    sys.exit(main())
