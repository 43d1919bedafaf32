"""The host's time of a decode step, with a device that does nothing: schedule, plans, inputs, launch, sample, collect.

    python -m benchmarks.engine.host_step [--before CHECKOUT] [--sequences 16 64] [--adapters 0 64] [--out FILE.json]

The engine of `host_subject.py`: the sites of Llama-3.1-8B, 32 layers of them, and adapters of rank 16 on all linears.
CHECKOUT: an older one, whose engine takes turns with this one's, so that both meet the same neighbours: ratios are
medians of those within a round.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig

from ..checkouts import ROOT, Subject, link_package, script_of, subject
from ..machine import machine
from ..models.llama import write_adapters, write_base
from ..tables import Table

COLUMNS = ("schedule", "attention", "bypass", "inputs", "graph", "launch", "sample", "collect", "all")
FIGURES = Table({"": "<18", **dict.fromkeys(COLUMNS, "10.3f")})
MODEL = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 2,
    "num_hidden_layers": 32,
    "max_position_embeddings": 1 << 17,
    "eos_token_id": None,
}

Timings = dict[str, float]  # stage of a step to milliseconds


@contextlib.contextmanager
def started(checkout: Path, base: Path, store: Path, arguments: argparse.Namespace) -> Iterator[Subject]:
    """Start the engine of a checkout, by the checkout's own script, and yield it when it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        link_package(checkout, Path(folder))
        script = str(script_of(checkout, "host_subject.py"))
        command = [sys.executable, script, str(base), str(store), str(max(arguments.sequences)), arguments.temperature]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        with subject(command, environment, Path(folder)) as engine:
            engine.answer()
            yield engine


def measure(subjects: dict[str, Subject], sequences: int, adapters: int, arguments: argparse.Namespace) -> Any:
    """Return each engine's medians by stage of the step, and those of the ratios within a round."""
    seen: dict[str, list[Timings]] = {name: [] for name in subjects}
    for each in subjects.values():
        each.ask({"start": sequences, "adapters": min(sequences, adapters), "context": arguments.context})
    for number in range(arguments.rounds):
        for name in list(subjects) if number % 2 else reversed(subjects):
            seen[name].append(subjects[name].ask({"steps": arguments.steps}))
    for each in subjects.values():
        each.ask({"finish": 0})
    medians = {name: {stage: median(run[stage] for run in runs) for stage in COLUMNS} for name, runs in seen.items()}
    if "before" in seen:
        pairs = list(zip(seen["before"], seen["after"], strict=True))
        medians["before / after"] = {
            stage: median(old[stage] / max(new[stage], 1e-6) for old, new in pairs) for stage in COLUMNS
        }
    return medians


def show(row: dict[str, Any]) -> None:
    print(f"{row['sequences']} sequences, {row['adapters']} adapters, ms a step")
    for name, timings in row["medians"].items():
        print(FIGURES.line(f"  {name}", *(timings[stage] for stage in COLUMNS)), flush=True)


def main() -> None:
    arguments = parse_arguments()
    checkouts = {} if arguments.before is None else {"before": arguments.before.resolve()}
    checkouts["after"] = ROOT
    rows = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_base(folder / "base", LlamaConfig(**MODEL), torch.bfloat16, "cpu")
        write_adapters(folder / "base", folder / "store", max(arguments.adapters))
        subjects = {
            name: stack.enter_context(started(checkout, folder / "base", folder / "store", arguments))
            for name, checkout in checkouts.items()
        }
        print(FIGURES.heading())
        for sequences in arguments.sequences:
            for adapters in arguments.adapters:
                medians = measure(subjects, sequences, adapters, arguments)
                rows.append({"sequences": sequences, "adapters": min(sequences, adapters), "medians": medians})
                show(rows[-1])
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--sequences", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 64])
    parser.add_argument("--context", type=int, default=512, help="tokens of a sequence, on average")
    parser.add_argument("--temperature", default="0", help="0: greedy")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="in each round")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
