"""The runner of `gpu_parts.py`: each command in a process of its own with a time limit, one part after the other.

    python -m benchmarks.gpu [--out DIR] [--seconds N] [--device cpu] [--vllm-kit DIR] [PART...]

gpu.sh, which provides packages, starts it. Whatever becomes of a command, the others run. All output goes to
DIR/gpu.log too, as it comes, and a line of DIR/results.jsonl says how each command ended. The last lines name what
failed, was stopped, found no time, or could not run here; the exit status is 1 if there is any such.
"""

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

from .gpu_parts import PARTS, UNASKED, Command, Part, Setting, Stage
from .records import append

LEAST = 20.0  # seconds, under which no command is begun
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
PACE = {"cpu": 5.0, "cuda": 1.0}  # times the limits
EAGER = "runs without CUDA graphs"  # what the engine says when it gave up its graphs


class Log:
    """A log that is printed and kept. Several threads write whole lines."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        self._file.close()


class Running:
    """A started command, whose output is read until it ends."""

    def __init__(self, command: Command, limit: float, log: Log, mark: str) -> None:
        """Start the command. limit: seconds until it is stopped. mark: a text before each of its lines."""
        self.command = command
        self.limit = limit
        self.without_graphs = False
        self._log = log
        self._mark = mark
        self._stopped = False
        self._begin = time.monotonic()
        self._process = subprocess.Popen(
            command.words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for raw in lines:
                text = raw.decode(errors="replace").rstrip("\n").rpartition("\r")[2]  # of a bar its last state
                self.without_graphs |= EAGER in text
                self._log.line(f"{self._mark}{text}")

    def wait(self) -> str:
        """Wait until the command ends, or stop it at its limit; return how it ended, empty if well."""
        try:
            code = self._process.wait(max(0.0, self._begin + self.limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._stopped = True
            self.kill()
            code = self._process.wait()
        self.kill()
        self._reader.join(GRACE)
        if self._stopped:
            return f"stopped after {self.limit:.0f} s"
        return f"failed with {code}" if code else "ran without CUDA graphs" if self.without_graphs else ""

    def kill(self) -> None:
        """Stop the command and all that it started."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin


class Lease:
    """The time on a lent machine, and what came of it. problems: a line for each thing that went wrong."""

    def __init__(self, setting: Setting, budget: float, log: Log) -> None:
        self.problems: list[str] = []
        self._setting = setting
        self._log = log
        self._begin = time.monotonic()
        self._budget = budget
        self._running: list[Running] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def run(self, name: str, part: Part) -> None:
        if why := missing(part):
            self._problem(name, f"not run: {why}", None)
            return
        for stage in part.stages:
            self._stage(name, stage)

    def _stage(self, name: str, stage: Stage) -> None:
        pace, left = PACE[self._setting.device], self._budget - self.seconds
        if left < LEAST:
            for command in stage:
                self._problem(name, "no time was left", command)
            return
        for number, command in enumerate(stage):
            self._log.line(f"== {name}, at {self.seconds:.0f} s: {shown(command)}")
            mark = f"{number + 1}| " if len(stage) > 1 else ""
            self._running.append(Running(command, min(command.seconds * pace, left), self._log, mark))
        for running in list(self._running):
            self._ended(name, running, running.wait())
            self._running.remove(running)

    def _ended(self, name: str, running: Running, problem: str) -> None:
        status = {"seconds": round(running.seconds, 1), "problem": problem or None}
        append(Path(self._setting.results), part=name, kind="command", command=shown(running.command), **status)
        self._log.line(f"== {name}, at {self.seconds:.0f} s: {problem or 'done'}: {shown(running.command)}")
        if problem:
            self.problems.append(f"{name}: {problem}: {shown(running.command)}")

    def _problem(self, name: str, problem: str, command: Command | None) -> None:
        what = shown(command) if command else None
        append(Path(self._setting.results), part=name, kind="command", command=what, seconds=0.0, problem=problem)
        self.problems.append(f"{name}: {problem}" + (f": {what}" if what else ""))
        self._log.line(f"== {self.problems[-1]}")

    def close(self, asked: int) -> int:
        """Stop what still runs and print the problems; return the exit status."""
        for running in self._running:
            running.kill()
            self.problems.append(f"interrupted: {shown(running.command)}")
        self._log.line(f"== {self.seconds:.0f} s in all, {asked} parts: {len(self.problems)} problems")
        for problem in self.problems:
            self._log.line(f"   {problem}")
        return int(bool(self.problems))


def missing(part: Part) -> str:
    """Return what the part needs and this machine lacks; empty if nothing."""
    lacking = [package for package in part.packages if importlib.util.find_spec(package) is None]
    if part.folder is not None:
        lacking += [str(part.folder / file) for file in part.files if not (part.folder / file).exists()]
    return f"there is no {', '.join(lacking)}: {part.hint}" if lacking else ""


def shown(command: Command) -> str:
    words = ["python" if word == sys.executable else word for word in command.words]
    return shlex.join(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(arguments.device, arguments.out, arguments.jobs, arguments.vllm_kit)
    parts = {name: PARTS[name](setting) for name in arguments.parts or UNASKED}
    with contextlib.closing(Log(arguments.out / "gpu.log")) as log:
        return run(parts, Lease(setting, arguments.seconds, log))


def run(parts: Mapping[str, Part], lease: Lease) -> int:
    signal.signal(signal.SIGTERM, _leave)
    try:
        for name, part in parts.items():
            lease.run(name, part)
    except (SystemExit, KeyboardInterrupt):
        lease.problems.append("the run was stopped from outside")
    return lease.close(len(parts))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(number)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    about = "\n".join(f"  {name:12} {make(Setting('cuda', Path('.'))).about}" for name, make in PARTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="(default: all but suite)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=280, help="in all (default: 280)")
    parser.add_argument("--device", choices=tuple(PACE), default="cuda")
    parser.add_argument("--jobs", type=int, default=12, help="processes that compile kernels at once")
    kit = os.environ.get("VLLM_KIT")
    parser.add_argument("--vllm-kit", type=Path, default=Path(kit) if kit else None, metavar="DIR")
    arguments = parser.parse_args(words)
    if unknown := [name for name in arguments.parts if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
