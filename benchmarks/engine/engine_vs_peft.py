"""The engine beside transformers and PEFT, in one process, on the same work, in turns.

    python -m benchmarks.engine.engine_vs_peft --rounds 5 --out benchmarks/results/engine_vs_peft.json

Tokens per second are output tokens over the time from the first prompt to the last token. Every round has prompts of
its own, so no prefix is ever found again; the first round is not counted.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from ..machine import machine_of
from ..models.smollm import Work, write_adapters, write_base
from ..tables import Table
from .contenders import Run, engine, on_engine, on_peft, on_transformers

SPEEDS, RATIO = Table({"": "<45", "tok/s": "10.1f"}), Table({"": "<45", "ratio": "10.3f"})
RATIOS = {
    "ours, mixed / PEFT, mixed": ("ours, mixed", "PEFT, mixed"),
    "ours, no adapters / transformers": ("ours, no adapters", "transformers"),
    "ours, mixed / ours, no adapters": ("ours, mixed", "ours, no adapters"),
    "ours, adapters unused / ours, no adapters": ("ours, adapters unused", "ours, no adapters"),
}


def main() -> int:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work = Work(arguments.requests, arguments.prompt_tokens, arguments.output_tokens)
    with tempfile.TemporaryDirectory() as folder:
        contenders = make_contenders(Path(folder), work, arguments.device, arguments.dtype, arguments.compile)
        speeds = measure(contenders, work, arguments.rounds)
    report = make_report(speeds, work, arguments.device, arguments.dtype)
    print(SPEEDS.heading())
    for name, entry in report["tokens_per_second"].items():
        print(SPEEDS.line(name, entry["median"]))
    print(RATIO.heading())
    for name, entry in report["ratios"].items():
        print(RATIO.line(name, entry["median"]))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="the engine's decode steps, as `serve --compile` does")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args()


def make_contenders(folder: Path, work: Work, device: str, dtype: str, compiled: bool) -> dict[str, Run]:
    base, store = folder / "base", folder / "store"
    write_base(base)
    digests = write_adapters(base, store)
    bare, full = (engine(base, store, there, device=device, dtype=dtype, compile=compiled) for there in ([], digests))
    return {
        "ours, no adapters": on_engine(bare, work, []),
        "ours, adapters unused": on_engine(full, work, []),
        "ours, mixed": on_engine(full, work, digests),
        "transformers": on_transformers(base, work, device, dtype),
        "PEFT, mixed": on_peft(base, store, work, digests, device, dtype),
    }


def measure(contenders: dict[str, Run], work: Work, rounds: int) -> dict[str, list[float]]:
    """Return tokens per second of each contender in each round.

    They take turns, each round beginning with another one.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    with tqdm(total=(rounds + 1) * len(contenders), unit="run") as progress:
        for number in range(rounds + 1):
            prompts = work.prompts(number)
            names = list(contenders)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                progress.set_postfix_str(name)
                speed = _speed(contenders[name], prompts, work.num_output_tokens)
                if number:
                    speeds[name].append(speed)
                progress.update()
    return speeds


def _speed(run: Run, prompts: list[list[int]], expected: int) -> float:
    start = time.perf_counter()
    made = run(prompts)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if made != expected:
        raise RuntimeError(f"{made} tokens were made, {expected} were asked for")
    return made / seconds


def make_report(speeds: dict[str, list[float]], work: Work, device: str, dtype: str) -> dict[str, dict]:
    """Return the figures as JSON.

    Ratios are taken within each round: what slows the machine slows both. Then their median.
    """
    ratios = {
        name: [over / under for over, under in zip(speeds[top], speeds[bottom], strict=True)]
        for name, (top, bottom) in RATIOS.items()
    }
    return {
        "command": shlex.join(["python", "-m", "benchmarks.engine.engine_vs_peft", *sys.argv[1:]]),
        "machine": machine_of(device),
        "work": vars(work) | {"dtype": dtype},
        "tokens_per_second": {name: _spread(values) for name, values in speeds.items()},
        "ratios": {name: _spread(values) for name, values in ratios.items()},
    }


def _spread(values: list[float]) -> dict[str, float | list[float]]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}


if __name__ == "__main__":
    sys.exit(main())
