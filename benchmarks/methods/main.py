"""The cost of each PEFT method in a decode step beside LoRA: one engine, sixteen sequences, eight adapters of a method.

    python -m benchmarks.methods --device cuda --out FILE.jsonl [--only LoRA,IA3] [--limit 30]

The base has the widths of an 8B Llama, a few layers and a small vocabulary, so that the adapters are a good part of a
step. A method's adapters are made by PEFT and compiled by the engine; then it takes turns with LoRA, and ratios are
taken within a round. Each line is printed and written when it is known. A method that takes more than --limit seconds
in all, fails, or ends the process is named, and the others go on in a new process.
"""

import argparse
import json
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..models.llama import WIDTHS, make_config, scratch_folder, write_base
from ..records import append
from .catalog import CATALOG

LORA = "LoRA"
STARTING = 120.0  # seconds that a process may take until its first line
START = {"start": True}


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    names = list(CATALOG) if arguments.only is None else arguments.only.split(",")
    if unknown := [name for name in names if name not in CATALOG]:
        print(f"there is no method {', '.join(unknown)}: there are {', '.join(CATALOG)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        base = Path(folder) / "base"
        config = make_config(arguments.shape, arguments.layers)
        config.vocab_size = min(config.vocab_size, 8192)
        write_base(base, config, getattr(torch, arguments.dtype), arguments.device)
        found = list[dict[str, Any]]()
        for record in supervised(names, lambda left: child_command(arguments, base, left), arguments):
            append(arguments.out, part="methods", kind="method", **record)
            print(line(record), flush=True)
            found.append(record)
    return int(not any("step_ms" in record for record in found))


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shape", choices=WIDTHS, default="8b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(CATALOG)}")
    parser.add_argument("--limit", type=float, default=30, help="seconds for one method (default: 30)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all: those left are named")
    parser.add_argument("--out", type=Path, help="also append the figures, as lines of JSON")
    return parser.parse_args(words)


def child_command(arguments: argparse.Namespace, base: Path, names: Sequence[str]) -> list[str]:
    own = {name: str(vars(arguments)[name]) for name in ("device", "dtype", "rounds")}
    words = [word for name, value in own.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "benchmarks.methods.engine_process", str(base), *words, *names]


def supervised(
    names: Sequence[str], command: Callable[[Sequence[str]], list[str]], limits: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield a record for each method, as a child process prints it, or with the `problem` that there was instead.

    limits: limit and seconds, as on the command line. A child takes LoRA again if it is not the first.
    """
    left, end = list(names), time.monotonic() + limits.seconds
    while left:
        child = Child(command(left if LORA in left else [LORA, *left]))
        patience = STARTING
        while left:
            record = child.record(min(patience, end - time.monotonic()))
            if record == START:
                patience = limits.limit
            elif record is None:
                break
            elif record["method"] in left:
                left.remove(record["method"])
                yield record
        problem = child.stop()
        if left and time.monotonic() > end:
            yield from ({"method": name, "problem": "no time was left"} for name in left)
            return
        if left:
            stuck = left.pop(0)
            yield {"method": stuck, "problem": problem or f"stopped after {limits.limit:.0f} s"}


class Child:
    """A process that prints records, among whatever else it prints."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for text in lines:
                self._lines.put(text)
        self._lines.put(None)

    def record(self, patience: float) -> dict[str, Any] | None:
        """Return the next record; None if none comes within `patience` seconds, or there are no more."""
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            try:
                text = self._lines.get(timeout=left)
            except queue.Empty:
                return None
            if text is None:
                return None
            if text.startswith("{"):
                found: dict[str, Any] = json.loads(text)
                return found
        return None

    def stop(self) -> str:
        """Stop the process; return how it ended if it had ended by itself before its work was done."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return ""
        finally:
            self._reader.join(1.0)
        return f"the process ended with {code}"


def line(record: dict[str, Any]) -> str:
    if problem := record.get("problem"):
        return f"{record['method']:<20}{problem}"
    ms, ratio, made = record["step_ms"], record["beside_lora"], record["made_s"]
    return f"{record['method']:<20}{ms:10.3f} ms a step{ratio:9.3f} x LoRA   made in {made:.1f} s"


if __name__ == "__main__":
    print(shlex.join(["python", *sys.argv]))
    sys.exit(main())
