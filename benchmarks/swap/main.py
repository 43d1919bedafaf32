"""The cost of moving adapters, measured over HTTP with copies of one adapter.

    python -m benchmarks.swap [MODEL --adapter FOLDER | --base-url URL --adapter FOLDER] [--measure stall,cycle]

first-token: the time to it from disk, from the host, on the device and after an upload. stall: pauses in other
requests' streams during loads and uploads. cycle: adapters a second through the device. registered: throughput by the
number of registered adapters. Without --base-url it starts servers of its own and restarts one, after which adapters
have to be compiled again; with it, the copies are uploaded there and deleted at the end.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peftserve.server.cli import client
from peftserve.server.cli.errors import CommandError
from peftserve.server.cli.load.options import expand_names
from peftserve.server.cli.load.report import command_line
from peftserve.server.demo import DEMO_ADAPTERS

from . import cycling, first_token, registered, report, stall
from .copies import Copies
from .own_server import SMALL_POOLS, OwnServer, started
from .server import MeasuredServer

ON_ONE = ("first-token", "stall", "cycle")
ALL = (*ON_ONE, "registered")
PREFIX = "peftserve-swap-"  # of the folders of its own servers' state
SETTINGS = ("copies", "rounds", "streams", "window", "hot", "requests")


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, or the exit code of a CommandError, whose message is printed."""
    try:
        return run(parse_arguments(words))
    except CommandError as error:
        print(f"swap: {error}", file=sys.stderr)
        return error.exit_code


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="to serve, with --adapter; without it, the demo")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="of which copies are made")
    parser.add_argument("--base-url", dest="url", help="a server that runs (default: its own)")
    client.add_key_argument(parser)
    parser.add_argument("--serve", default="", metavar="FLAGS", help="more flags for its own servers, in one word")
    parser.add_argument("--measure", metavar="A,B", help=f"some of {', '.join(ALL)} (default: all)")
    parser.add_argument("--copies", type=_count, default=32, metavar="N", help="adapters to move (default: 32)")
    parser.add_argument("--rounds", type=_count, default=20, metavar="N", help="of each measurement (default: 20)")
    parser.add_argument("--streams", type=_count, default=2, metavar="N", help="stall: other requests (default: 2)")
    parser.add_argument("--window", type=float, default=3.0, metavar="S", help="stall: seconds of each (default: 3)")
    parser.add_argument(
        "--registered",
        default="1,10,100,1000,10000",
        metavar="N,M",
        help="numbers of adapters (default: 1,10,100,1000,10000)",
    )
    parser.add_argument("--hot", type=_count, default=32, metavar="N", help="registered: asked for (default: 32)")
    parser.add_argument(
        "--requests", type=_count, default=200, metavar="N", help="registered, cycle: in a window (default: 200)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the result as JSON")
    return parser.parse_args(words)


def run(arguments: argparse.Namespace) -> int:
    chosen = _chosen(arguments)
    copies = Copies(_folder(arguments))
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    about = {
        "command": command_line(["python", "-m", "benchmarks.swap"]),
        "adapter_bytes": copies.num_bytes,
        "settings": settings,
    }
    made = {**about, **_measure(chosen, copies, arguments)}
    print(report.readable(made))
    if arguments.out:
        arguments.out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return 0


def _chosen(arguments: argparse.Namespace) -> list[str]:
    default = ON_ONE if arguments.url else ALL
    chosen = expand_names(arguments.measure) if arguments.measure else [*default]
    if unknown := [name for name in chosen if name not in ALL]:
        raise CommandError(f"--measure: {unknown[0]!r} is none of {', '.join(ALL)}")
    if arguments.url and (arguments.model or arguments.serve):
        raise CommandError("--base-url: the server there has its model and its flags already")
    if arguments.url and "registered" in chosen:
        raise CommandError("--measure registered: it compares servers, and starts them itself, without --base-url")
    if arguments.copies < arguments.streams + 3:
        raise CommandError(f"--copies: {arguments.copies} are too few beside {arguments.streams} streams")
    return chosen


def _folder(arguments: argparse.Namespace) -> Path:
    if arguments.adapter is not None:
        folder: Path = arguments.adapter
        return folder
    if arguments.model or arguments.url:
        raise CommandError("--adapter: give the folder of an adapter that fits the model")
    return next(iter(DEMO_ADAPTERS.values()))


def _measure(chosen: Sequence[str], copies: Copies, arguments: argparse.Namespace) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if on_one := [name for name in chosen if name in ON_ONE]:
        if arguments.url:
            made |= asyncio.run(_on_one(on_one, arguments.url, copies, arguments, ()))
        else:
            made |= _on_its_own(on_one, copies, arguments)
    if "registered" in chosen:
        with ExitStack() as servers:
            own = {number: _start(servers, arguments, {}) for number in _numbers(arguments.registered)}
            made["registered"] = asyncio.run(_registered(own, copies, arguments))
    return made


def _on_its_own(chosen: Sequence[str], copies: Copies, arguments: argparse.Namespace) -> dict[str, Any]:
    """Upload the copies to one server, and measure the next one on the same state folder."""
    with TemporaryDirectory(prefix=PREFIX) as folder:
        with ExitStack() as servers:
            url = _start(servers, arguments, SMALL_POOLS, Path(folder)).url
            names = asyncio.run(_upload(url, copies, arguments))
        with ExitStack() as servers:
            url = _start(servers, arguments, SMALL_POOLS, Path(folder)).url
            return asyncio.run(_on_one(chosen, url, copies, arguments, names))


def _start(
    servers: ExitStack, arguments: argparse.Namespace, pools: Mapping[str, int], folder: Path | None = None
) -> OwnServer:
    if folder is None:
        folder = Path(servers.enter_context(TemporaryDirectory(prefix=PREFIX)))
    return servers.enter_context(started(arguments.model, shlex.split(arguments.serve), pools, folder))


async def _upload(url: str, copies: Copies, arguments: argparse.Namespace) -> list[str]:
    async with MeasuredServer(url, arguments.api_key, copies, keep=True) as server:
        return await server.register(arguments.copies)


async def _on_one(
    chosen: Sequence[str], url: str, copies: Copies, arguments: argparse.Namespace, known: Sequence[str]
) -> dict[str, Any]:
    """Measure one server. known: copies that are there already, from before a restart."""
    made: dict[str, Any] = {}
    async with MeasuredServer(url, arguments.api_key, copies, keep=bool(known), known=known) as server:
        names = [*known] or await server.register(arguments.copies)
        if "first-token" in chosen:
            made["first_token"] = await first_token.measure(server, names, arguments.rounds, restarted=bool(known))
        if "stall" in chosen:
            made["stall"] = await stall.measure(server, names, arguments.streams, arguments.rounds, arguments.window)
        if "cycle" in chosen:
            made["cycle"] = await cycling.measure(server, names, arguments.requests, clients=arguments.streams)
    return made


async def _registered(own: Mapping[int, OwnServer], copies: Copies, arguments: argparse.Namespace) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        servers = {}
        for number, started_one in own.items():
            server = MeasuredServer(
                started_one.url, arguments.api_key, copies, keep=True, cpu_seconds=started_one.cpu_seconds
            )
            servers[number] = await stack.enter_async_context(server)
        return await registered.measure(
            servers, hot=arguments.hot, rounds=arguments.rounds, requests=arguments.requests
        )


def _numbers(text: str) -> list[int]:
    try:
        return sorted({_count(number) for number in text.split(",")})
    except (ValueError, argparse.ArgumentTypeError):
        raise CommandError(f"--registered: {text!r} are not numbers of 1 or more") from None


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 or more is asked for")
    return number
