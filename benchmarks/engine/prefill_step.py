"""Prompts through the engine beside their floor: tokens a second without adapters, over one, and over eight.

    python -m benchmarks.engine.prefill_step --device cuda --layers 8 --out FILE.jsonl

The base is decode_step.py's. All prompts come at once, in steps of at most --budget tokens, and one token of each is
made. Each round has prompts of its own; the first is not counted. Every figure is printed and written when it is known.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine

from ..kernels.roofline import measure_roofline
from ..machine import machine_of
from ..models.llama import WIDTHS, make_config, scratch_folder, write_adapters, write_base
from ..records import append
from ..tables import Table
from .step_floor import StepFloor
from .step_profile import device_profile, host_profile, lines
from .stepping import run

ADAPTERS = (0, 1, 8)
FIGURES = Table(
    {"prompts": "12", "adapters": "9", "tokens/s": "10.0f", "ms": "9.2f", "floor": "9.2f", "ratio": "7.2f"},
)


def main() -> int:
    arguments = parse_arguments()
    dtype = getattr(torch, arguments.dtype)
    config = make_config(arguments.shape, arguments.layers)
    with tempfile.TemporaryDirectory(dir=arguments.scratch or scratch_folder()) as folder:
        base, store = Path(folder) / "base", Path(folder) / "store"
        write_base(base, config, dtype, arguments.device)
        digests = write_adapters(base, store, max(ADAPTERS))
        found = measure_roofline(arguments.device, dtype)
        engine = make_engine(arguments, base, store)
        about = {
            **machine_of(arguments.device),
            **found._asdict(),
            "layers": arguments.layers,
            "dtype": arguments.dtype,
        }
        append(arguments.out, part="prefill", kind="machine", **about)
        print(FIGURES.heading())
        measure(arguments, engine, digests, StepFloor(config, dtype, found))
        engine.close()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shape", choices=WIDTHS, default="8b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--prompts", nargs="+", default=["16x512", "4x2048"], metavar="NUMBERxTOKENS")
    parser.add_argument("--budget", type=int, default=8192, help="tokens of one step (default: 8192)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder with room for the base")
    parser.add_argument("--out", type=Path, help="also append the figures, as lines of JSON")
    return parser.parse_args()


def sizes(text: str) -> tuple[int, int]:
    number, _, tokens = text.partition("x")
    return int(number), int(tokens)


def make_engine(arguments: argparse.Namespace, base: Path, store: Path) -> Engine:
    most = max(number * (tokens + 16) for number, tokens in map(sizes, arguments.prompts))
    options: dict[str, Any] = {"device": arguments.device, "dtype": arguments.dtype, "prefix_caching": False}
    options |= {"max_batch_tokens": arguments.budget, "kv_cache_tokens": most, "max_loras": max(ADAPTERS)}
    return Engine(EngineConfig(model=str(base), store=store, **options))


def measure(arguments: argparse.Namespace, engine: Engine, digests: Sequence[str], floor: StepFloor) -> None:
    for prompts in arguments.prompts:
        number, tokens = sizes(prompts)
        for adapters in (used for used in ADAPTERS if used <= number):
            seeds = count()

            def once(number: int = number, tokens: int = tokens, used: Sequence[str] = digests[:adapters]) -> float:
                return run(engine, number, used, tokens, 1, next(seeds))  # noqa: B023, which is called within the loop

            once()
            rounds = [once() * 1e3 for _ in range(arguments.rounds)]
            least = floor([(tokens, 0)] * number, adapters)
            record = {"layers": arguments.layers, "prompts": number, "tokens": tokens, "adapters": adapters}
            record |= {"ms": statistics.median(rounds), "rounds_ms": rounds, "floor_ms": least.whole * 1e3}
            record |= {"host_ms": host_profile(once, 1), "device": device_profile(once, 1)}
            append(arguments.out, part="prefill", kind="prefill", **record)
            print(line(record), *lines(record["device"], record["host_ms"]), sep="\n", flush=True)


def line(record: dict[str, Any]) -> str:
    number, tokens, ms, floor = (record[name] for name in ("prompts", "tokens", "ms", "floor_ms"))
    return FIGURES.line(f"{number}x{tokens}", record["adapters"], number * tokens / ms * 1e3, ms, floor, ms / floor)


if __name__ == "__main__":
    sys.exit(main())
