"""`peftserve bench serve`: load on any server that speaks OpenAI's completions, in a closed or an open loop.

Closed: clients ask, read the stream to its end, and ask again. Open: requests come at a rate, whatever the server does.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import client
from .errors import FAILED, CommandError
from .load import options, report
from .load.generator import Target, measure


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("bench", help="measure a running server")
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    serve = kinds.add_parser("serve", help="load over HTTP", description=__doc__)
    client.add_arguments(serve)
    options.add_target_arguments(serve)
    options.add_arguments(serve)
    serve.add_argument("--out", type=Path, metavar="FILE", help="also write the result as JSON")
    serve.add_argument("--plot", type=Path, metavar="FILE", help="also draw the distributions, as PNG, SVG or PDF")
    serve.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and report; return FAILED if any request failed. Raises CommandError."""
    if arguments.plot and not report.can_plot():
        raise CommandError("--plot: it needs matplotlib: pip install 'peftserve[bench]'")
    for name in ("out", "plot", "save_trace"):
        flag = f"--{name.replace('_', '-')}"
        check_writable(flag, getattr(arguments, name))  # before minutes are spent on what cannot be kept
    renames = options.parse_renames(arguments.rename)
    load = options.load(arguments)
    target = Target(arguments.url, arguments.api_key, arguments.dialect, renames)
    measured, seconds = measure(load.trace, target, load.concurrency)
    about = {"command": report.command_line(["peftserve"]), "url": target.url, "dialect": target.dialect}
    made = {**about, **report.make_report(load, measured, seconds)}
    print(report.readable(made))
    _write(made, arguments.out)
    if arguments.plot:
        report.plot(measured, load.slo_ttft, arguments.plot)
    return FAILED if made["all"]["failed"] else 0


def check_writable(flag: str, file: Path | None) -> None:
    """Raise CommandError if a file cannot be written where it is to be. What is there stays as it is."""
    if file is None:
        return
    is_new = not file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        raise CommandError(f"{flag}: cannot write {str(file)!r}: {error.strerror}") from None
    if is_new:
        file.unlink()


def _write(made: Mapping[str, Any], out: Path | None) -> None:
    if out:
        out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
