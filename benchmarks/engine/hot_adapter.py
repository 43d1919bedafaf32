"""What one adapter with all of the traffic costs beside the bare base, and what a merged copy of linears would save.

    python -m benchmarks.engine.hot_adapter --device cpu --dtype float32 --shape 135m --layers 8 --out FILE.jsonl

A second copy of all linears with the adapter in it would run at the base's own speed: what it saves is the difference.
What it costs is measured too: folding every linear into a copy, once, and the copy's memory. Steps over the base and
over each adapter take turns in one process, and figures are medians of rounds; on a CPU of the process's time on one
thread, which neighbours lengthen least. `pays after` is how many steps repay a switch.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine

from ..machine import machine_of
from ..models.llama import WIDTHS, linears_of, make_config, scratch_folder, write_adapters, write_base
from ..records import append
from ..tables import Table
from .stepping import finish, run, settle, start, step, synchronize

FIGURES = Table(
    {"work": "12", "rank": "5", "base ms": "9.3f", "adapter ms": "10.3f", "saved": "7.1%", "pays after": "11.1f"}
)


def main() -> int:
    arguments = parse_arguments()
    dtype = getattr(torch, arguments.dtype)
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    config = make_config(arguments.shape, arguments.layers)
    with tempfile.TemporaryDirectory(dir=arguments.scratch or scratch_folder()) as folder:
        base, store = Path(folder) / "base", Path(folder) / "store"
        num_bytes = write_base(base, config, dtype, arguments.device)
        digests = {rank: write_adapters(base, store, 1, rank)[0] for rank in arguments.ranks}
        switches = {rank: switch_ms(arguments, linears_of(config).values(), rank, dtype) for rank in arguments.ranks}
        copy = sum(a * b for a, b in linears_of(config).values()) * arguments.layers * dtype.itemsize
        about = {**machine_of(arguments.device), "layers": arguments.layers, "shape": arguments.shape}
        about |= {"dtype": arguments.dtype, "weights_bytes": num_bytes, "copy_bytes": copy, "switch_ms": switches}
        append(arguments.out, part="hot", kind="machine", **about)
        print(", ".join(f"{name} {value}" for name, value in about.items()), FIGURES.heading(), sep="\n", flush=True)
        engine = make_engine(arguments, base, store)
        for rows in arguments.rows:
            report(arguments, f"decode {rows}", decode(arguments, engine, digests, rows), switches)
        report(arguments, f"prefill {arguments.prompt}", prefill(arguments, engine, digests), switches)
        engine.close()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shape", choices=WIDTHS, default="8b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64], help="sequences of a decode step")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prefill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="in each round")
    parser.add_argument("--scratch", type=Path, help="folder with room for the base")
    parser.add_argument("--out", type=Path, help="also append the figures, as lines of JSON")
    return parser.parse_args()


def make_engine(arguments: argparse.Namespace, base: Path, store: Path) -> Engine:
    most = max(arguments.rows)
    tokens = most * (arguments.context + 2 * arguments.steps + most + 16) + 2 * arguments.prompt
    options: dict[str, Any] = {"device": arguments.device, "dtype": arguments.dtype, "prefix_caching": False}
    options |= {"num_threads": 1} if arguments.device == "cpu" else {}
    options |= {"max_running": most, "kv_cache_tokens": tokens, "max_loras": len(arguments.ranks)}
    return Engine(EngineConfig(model=str(base), store=store, **options))


def seconds_of(arguments: argparse.Namespace, work: Callable[[], object]) -> float:
    """Return the seconds that some work takes: on a CPU, of the process."""
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    synchronize()
    begin = clock()
    work()
    synchronize()
    return clock() - begin


def switch_ms(
    arguments: argparse.Namespace, linears: Collection[tuple[int, int]], rank: int, dtype: torch.dtype
) -> float:
    """Return how long it takes to make a copy of all layers' linears with an adapter in them."""
    made = [
        tuple(torch.randn(shape, device=arguments.device, dtype=dtype) for shape in ((o, i), (rank, i), (o, rank)))
        for i, o in linears
    ]
    copies = [torch.empty_like(weight) for weight, _, _ in made]

    def fold() -> None:
        for copy, (weight, a, b) in zip(copies, made, strict=True):
            torch.addmm(weight, b, a, out=copy)

    fold()
    return statistics.median(seconds_of(arguments, fold) * arguments.layers * 1e3 for _ in range(arguments.rounds))


def decode(
    arguments: argparse.Namespace, engine: Engine, digests: Mapping[int, str], rows: int
) -> dict[int, Sequence[float]]:
    """Return the milliseconds of a decode step in each round, by rank; 0 is the base."""
    rounds: dict[int, list[float]] = {rank: [] for rank in (0, *digests)}
    for round_ in range(arguments.rounds + 1):
        for rank, taken in rounds.items():
            used = [digests[rank]] if rank else []
            start(engine, rows, used, arguments.context, 2 * arguments.steps + rows + 16)
            settle(engine, rows)
            seconds = seconds_of(arguments, lambda: [step(engine) for _ in range(arguments.steps)])
            if round_:  # the first loads and compiles
                taken.append(seconds / arguments.steps * 1e3)
            finish(engine, rows)
    return dict(rounds)


def prefill(arguments: argparse.Namespace, engine: Engine, digests: Mapping[int, str]) -> dict[int, Sequence[float]]:
    """Return the milliseconds of one prompt in each round, by rank; 0 is the base."""
    rounds: dict[int, list[float]] = {rank: [] for rank in (0, *digests)}
    for round_ in range(arguments.rounds + 1):
        for rank, taken in rounds.items():
            used = [digests[rank]] if rank else []
            seconds = seconds_of(arguments, partial(run, engine, 1, used, arguments.prompt, 1, round_))
            if round_:
                taken.append(seconds * 1e3)
    return dict(rounds)


def report(
    arguments: argparse.Namespace,
    work: str,
    rounds: Mapping[int, Sequence[float]],
    switches: Mapping[int, float],
) -> None:
    base = statistics.median(rounds[0])
    for rank, taken in rounds.items():
        if not rank:
            continue
        ms = statistics.median(taken)
        pays = switches[rank] / (ms - base) if ms > base else float("inf")
        append(arguments.out, part="hot", kind=work, rank=rank, base_ms=base, adapter_ms=ms, rounds_ms=list(taken))
        print(FIGURES.line(work, rank, base, ms, (ms - base) / ms, pays), flush=True)


if __name__ == "__main__":
    sys.exit(main())
