"""vLLM's own engine on the points of `decode_step.py` and `prefill_step.py`, and a table of both side by side.

    python -m benchmarks.engine.beside_vllm run --kit DIR --results FILE.jsonl
    python -m benchmarks.engine.beside_vllm table --results FILE.jsonl

DIR is a folder that is no part of this repository: vLLM with what it needs, for a machine without a network, and the
script that measures it (`unpack.sh`, `probe.py`, `vllm_e2e.py`). Each line of that script goes to the results as it
comes. The table has both engines' wall time and device time of a step, as times of one floor, `step_floor.py`'s.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import Record, append, read
from ..tables import Table

PART = "vllm"
FAILURES = ("error", "skipped", "ended")
ENGINES = {"base": "vLLM", "lora": "vLLM, LoRA enabled"}


@dataclass(frozen=True)
class Time:
    """Milliseconds of one step, or of all prompts. wall: by the clock. device: in which the device ran anything."""

    wall: float
    device: float | None


Point = tuple[int, int]  # sequences or prompts, adapters


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8, help="of our base in the table (default: 8, as vLLM's)")
    parser.add_argument("--tokens", type=int, default=512, help="of a prompt in the table (default: 512, as vLLM's)")
    parser.add_argument("--total", type=int, default=180, help="seconds for vLLM (default: 180)")
    arguments = parser.parse_args()
    if arguments.what == "run":
        if arguments.kit is None:
            parser.error("run: --kit DIR says where vLLM's kit is")
        return run(arguments.kit.resolve(), arguments.results, arguments.total)
    print("\n".join(table(list(read(arguments.results)), arguments.layers, arguments.tokens)))
    return 0


def run(kit: Path, results: Path, total: int) -> int:
    """Run the kit. Return 1 if any of its steps failed, or a point was left out."""
    with tempfile.TemporaryDirectory() as folder:
        environment = surroundings(Path(folder))
        steps = (
            ["bash", "unpack.sh"],
            [sys.executable, "probe.py"],
            [sys.executable, "vllm_e2e.py", f"--total={total}"],
        )
        problems = 0
        for name, *words in steps:
            command = [name, str(kit / words[0]), *words[1:]]
            found = forwarded(command, Path(folder), environment, results)
            problems += sum(map(failed, found))
            if found and found[-1].get("kind") == "ended":
                return 1
    return int(problems > 0)


def surroundings(folder: Path) -> dict[str, str]:
    """Return an environment without our package, in which files and compiled code stay in the folder."""
    unpacked, out, work = (str(folder / name) for name in ("kit", "out", "work"))
    own = {"VKIT": unpacked, "VKIT_DIR": unpacked, "VKIT_MODELINFOS": f"{unpacked}/modelinfos"}
    own |= {"OUT": out, "VE_WORK": work, "PYTHONPATH": f"{unpacked}:{unpacked}/site", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own}


def forwarded(command: Sequence[str], folder: Path, environment: Mapping[str, str], results: Path) -> list[Record]:
    """Print what a command prints and record its lines of JSON. The last record says so if the command failed."""
    found = list[Record]()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if (record := _record(line)) is not None:
                found.append(record)
                append(results, **{**record, "part": PART})
    if process.returncode:
        found.append({"kind": "ended", "command": Path(command[1]).name, "code": process.returncode})
        append(results, **{**found[-1], "part": PART})
    return found


def failed(record: Record) -> bool:
    """Return whether a record says that something failed or was left out."""
    return record.get("kind") in FAILURES or (record.get("kind") == "process" and record.get("rc") != 0)


def _record(line: str) -> Record | None:
    if not line.startswith("{"):
        return None
    try:
        found: Record = json.loads(line)
    except ValueError:
        return None
    return found


def table(records: Sequence[Record], layers: int = 8, tokens: int = 512) -> list[str]:
    """Return the lines of the table of both engines. Either may be missing; of repeated points the last one counts."""
    vllm = [record for record in records if record.get("part") == PART]
    own = [record for record in records if record.get("layers") == layers]
    lines = [*_warnings(vllm), "ms a step, of the wall (of the device), as times of the floor; the ratio is of walls"]
    decode = {
        "ours": _times(decodes(own, unused=False)),
        "ours, 64 loaded": _times(decodes(own, unused=True)),
        **{name: vllm_decode(vllm, engine) for engine, name in ENGINES.items()},
    }
    floors = {_point(r): r["floor_ms"] for r in (*_of_vllm(vllm, "decode"), *decodes(own))}
    lines += _section("sequences", floors, decode)
    prefill = {"ours": _times(prefills(own, tokens)), **{n: vllm_prefill(vllm, e) for e, n in ENGINES.items()}}
    floors = {_point(r): r["floor_ms"] for r in prefills(own, tokens)}
    return [*lines, "", *_section("prompts", floors, prefill, tokens)]


def decodes(records: Iterable[Record], *, unused: bool | None = None) -> list[Record]:
    """Return our records of decode steps.

    unused: of steps without adapters, only those with, or without, adapters loaded.
    """
    found = [r for r in records if r["part"] == r["kind"] == "decode"]
    return [r for r in found if unused is None or (r["loaded"] > 0) == (unused or r["adapters"] > 0)]


def prefills(records: Iterable[Record], tokens: int) -> list[Record]:
    return [r for r in records if r["part"] == r["kind"] == "prefill" and r["tokens"] == tokens]


def _times(records: Iterable[Record]) -> dict[Point, Time]:
    return {_point(r): Time(r.get("step_ms", r.get("ms")), (r["device"] or {}).get("busy_ms")) for r in records}


def _point(record: Record) -> Point:
    count = next(record[name] for name in ("sequences", "n", "prompts") if name in record)
    return int(count), int(record["adapters"])


def _of_vllm(records: Iterable[Record], kind: str, engine: str | None = None) -> list[Record]:
    return [r for r in records if r.get("kind") == kind and engine in (None, r.get("engine")) and "error" not in r]


def vllm_decode(records: Sequence[Record], engine: str) -> dict[Point, Time]:
    device = {_point(r): r["gpu_busy_ms"] for r in _of_vllm(records, "gpu_time", engine)}
    return {_point(r): Time(r["step_ms"], device.get(_point(r))) for r in _of_vllm(records, "decode", engine)}


def vllm_prefill(records: Sequence[Record], engine: str) -> dict[Point, Time]:
    return {_point(r): Time(r["s"] * 1e3, None) for r in _of_vllm(records, "prefill", engine)}


def _warnings(vllm: Sequence[Record]) -> list[str]:
    """Return lines on what went wrong in vLLM's run, to be shown before its figures."""
    checks = [r for r in vllm if r.get("kind") == "check"]
    lines = [] if checks else ["vLLM's adapters were not checked"]
    lines += ["vLLM's adapters changed no token: its figures say nothing of adapters" for r in checks if not r["ok"]]
    return lines + [f"vLLM: {json.dumps(r)}" for r in vllm if failed(r)]


def _section(
    what: str, floors: Mapping[Point, float], engines: Mapping[str, Mapping[Point, Time]], tokens: int | None = None
) -> list[str]:
    """Return the lines of one kind of step. tokens: of each prompt, to show tokens a second beside the wall time."""
    columns = {what: "9", "adapters": "9", "floor": "9.3f", **dict.fromkeys(engines, "28"), "  vLLM / ours": "<14"}
    figures = Table(columns)
    lines = [figures.heading()]
    for point in sorted({point for times in engines.values() for point in times}):
        floor = floors.get(point)
        cells = [_cell(times.get(point), floor, point[0] * tokens if tokens else None) for times in engines.values()]
        lines.append(figures.line(*point, floor or None, *cells, _ratios(point, engines)))
    return lines


def _cell(time: Time | None, floor: float | None, tokens: int | None) -> str:
    if time is None:
        return "-"
    device = "" if time.device is None else f" ({time.device:.2f})"
    speed = f" {tokens / time.wall:.0f}k/s" if tokens else ""
    return f"{time.wall:.2f}{device}" + (f" {time.wall / floor:.2f} x" if floor else "") + speed


def _ratios(point: Point, engines: Mapping[str, Mapping[Point, Time]]) -> str:
    """Return, for each way that vLLM ran the point, its wall time over ours with as many adapters loaded."""
    found = list[str]()
    for engine, name in ENGINES.items():
        mine = engines["ours"]
        if engine == "lora" and point[1] == 0:
            mine = engines.get("ours, 64 loaded", mine)
        its = engines[name].get(point)
        if its is not None and point in mine:
            found.append(f"{its.wall / mine[point].wall:.2f}")
    return "  " + " / ".join(found)


if __name__ == "__main__":
    sys.exit(main())
