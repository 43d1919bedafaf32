"""Older checkouts measured beside this one: each in processes of its own, with its own package and scripts."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def link_package(checkout: Path, folder: Path) -> None:
    """Make the folder one in which `peftserve` is this checkout's package."""
    (folder / "peftserve").mkdir(parents=True)
    for name in ("server", "kernels", "adapters"):
        (folder / "peftserve" / name).symlink_to(checkout.resolve() / name)


def script_of(checkout: Path, name: str) -> Path:
    """Return a benchmark's script in a checkout, wherever in its benchmarks it is. Raises SystemExit without one."""
    found = next((checkout / "benchmarks").rglob(name), None)
    if found is None:
        raise SystemExit(f"{checkout} has no benchmark {name}")
    return found


class Subject:
    """A process of one checkout that answers each line of JSON with a line of JSON."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, question: Any) -> Any:
        """Raises SystemExit if the process has ended, which then says why on its own standard error."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """Wait for a line that needs no question, such as that the process is ready."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("a measured process has ended")
        return json.loads(line)


@contextlib.contextmanager
def subject(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[Subject]:
    """Start a process in a folder, yield it, and end it."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=folder, **pipes) as process:
        assert process.stdin is not None
        try:
            yield Subject(process)
        finally:
            process.terminate()
            with contextlib.suppress(BrokenPipeError):  # of a question that it never took
                process.stdin.close()
