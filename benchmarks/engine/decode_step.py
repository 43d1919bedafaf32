"""A decode step of the engine beside its floor, with and without adapters, and where its time goes.

    python -m benchmarks.engine.decode_step --device cuda --layers 8 --out FILE.jsonl

The base has the widths of an 8B Llama and random weights. Each sequence has --context tokens when it is measured. First
all numbers of sequences without adapters; then, once they are loaded, none of them used, one for all sequences, and one
of rank 16 for each sequence (at most --adapters). Every figure is printed and written when it is known. The floor is
`step_floor.py`'s, at the bandwidth and the peak that this machine reaches; where time goes is `step_profile.py`'s.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftserve.adapters.files import WEIGHTS
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine

from ..kernels.roofline import measure_roofline
from ..machine import machine_of
from ..models.llama import WIDTHS, make_config, scratch_folder, write_adapters, write_base
from ..records import append
from ..tables import Table
from .step_floor import StepFloor
from .step_profile import device_profile, host_profile, lines
from .stepping import finish, run, settle, start, step, steps

PROFILED = 6  # steps
LEAST_MEMORY = 1 << 28  # bytes for adapters, beside their files' size
FIGURES = Table(
    {"sequences": "9", "adapters": "9", "loaded": "7", "step ms": "9.3f"}
    | {"floor": "8.3f", "ratio": "7.2f", "device": "9.3f", "host": "8.3f"}
)


@dataclass(frozen=True)
class DecodePoint:
    """A point of the benchmark. adapters: used by the sequences. loaded: on the device."""

    sequences: int
    adapters: int
    loaded: int


def main() -> int:
    arguments = parse_arguments()
    dtype = getattr(torch, arguments.dtype)
    config = make_config(arguments.shape, arguments.layers)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.scratch or scratch_folder()) as folder:
        base, store = Path(folder) / "base", Path(folder) / "store"
        write_base(base, config, dtype, arguments.device)
        digests = write_adapters(base, store, arguments.adapters)
        found = measure_roofline(arguments.device, dtype)
        written = time.monotonic() - begin
        engine = make_engine(arguments, base, store, digests)
        about = {
            **machine_of(arguments.device),
            **found._asdict(),
            "layers": arguments.layers,
            "dtype": arguments.dtype,
        }
        about |= {"written_s": round(written, 1), "start_s": round(time.monotonic() - begin - written, 1)}
        print(", ".join(f"{name} {value}" for name, value in about.items()), FIGURES.heading(), sep="\n")
        append(arguments.out, part="decode", kind="machine", **about)
        measure(arguments, engine, digests, StepFloor(config, dtype, found))
        engine.close()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shape", choices=WIDTHS, default="8b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="0: only start, so that all is compiled")
    parser.add_argument("--steps", type=int, default=16, help="in each round")
    parser.add_argument("--scratch", type=Path, help="folder with room for the base")
    parser.add_argument("--out", type=Path, help="also append the figures, as lines of JSON")
    return parser.parse_args()


def make_engine(arguments: argparse.Namespace, base: Path, store: Path, digests: Sequence[str]) -> Engine:
    """Make an engine with room for all adapters at once, on the device and on the host."""
    most = max(arguments.sequences)
    memory = LEAST_MEMORY + sum((store / digest / WEIGHTS).stat().st_size for digest in digests)
    options: dict[str, Any] = {"device": arguments.device, "dtype": arguments.dtype, "max_running": most}
    options |= {"kv_cache_tokens": most * (arguments.context + 16 + tokens_of(arguments)), "prefix_caching": False}
    options |= {"max_loras": max(len(digests), 1), "adapter_memory": memory, "host_adapter_memory": memory}
    return Engine(EngineConfig(model=str(base), store=store, **options))


def tokens_of(arguments: argparse.Namespace) -> int:
    """Return how many tokens each sequence makes: measured, profiled, and while the last ones' prompts still run."""
    return arguments.steps * (arguments.rounds + 2) + 2 * PROFILED + max(arguments.sequences)


def points(sequences: Sequence[int], adapters: int) -> Iterator[DecodePoint]:
    yield from (DecodePoint(count, 0, 0) for count in sequences)
    for count in sequences if adapters else ():
        used = dict.fromkeys((0, 1, min(count, adapters)))
        yield from (DecodePoint(count, each, adapters) for each in used)


def measure(arguments: argparse.Namespace, engine: Engine, digests: Sequence[str], floor: StepFloor) -> None:
    loaded = 0
    for point in points(arguments.sequences, len(digests)) if arguments.rounds else ():
        if point.loaded > loaded:
            loaded = point.loaded
            append(arguments.out, part="decode", kind="load", adapters=loaded, seconds=load(engine, digests))
        found = measured(arguments, engine, digests[: point.adapters], point)
        context = arguments.context + arguments.steps * (1 + arguments.rounds // 2)
        least = floor([(1, context)] * point.sequences, point.adapters)
        record = {"layers": arguments.layers, **vars(point), **found, "floor_ms": least.whole * 1e3}
        record["floor_parts_ms"] = {name: seconds * 1e3 for name, seconds in vars(least).items()}
        append(arguments.out, part="decode", kind="decode", **record)
        print(line(record), *lines(record["device"], record["host_ms"]), sep="\n", flush=True)


def load(engine: Engine, digests: Sequence[str]) -> float:
    seconds = run(engine, len(digests), digests, 8, 2, 0)
    print(f"{len(digests)} adapters were loaded in {seconds:.1f} s", flush=True)
    return seconds


def measured(arguments: argparse.Namespace, engine: Engine, used: Sequence[str], point: DecodePoint) -> dict[str, Any]:
    start(engine, point.sequences, used, arguments.context, tokens_of(arguments))
    settle(engine, point.sequences)
    steps(engine, arguments.steps)
    rounds = [steps(engine, arguments.steps) * 1e3 for _ in range(arguments.rounds)]
    host = host_profile(lambda: step(engine), PROFILED)
    device = device_profile(lambda: step(engine), PROFILED)
    finish(engine, point.sequences)
    return {"step_ms": statistics.median(rounds), "rounds_ms": rounds, "host_ms": host, "device": device}


def line(record: dict[str, Any]) -> str:
    setting = (record["sequences"], record["adapters"], record["loaded"])
    step, floor = record["step_ms"], record["floor_ms"]
    device = record["device"] and record["device"]["busy_ms"]
    return FIGURES.line(*setting, step, floor, step / floor, device, record["host_ms"]["host"])


if __name__ == "__main__":
    sys.exit(main())
