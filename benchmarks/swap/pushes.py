"""What a trainer's pushes cost: an adapter sent again and again under one name, while others ask for it.

    python -m benchmarks.swap.pushes [MODEL --adapter FOLDER] [--pushes 2000] [--clients 4]

A server of its own keeps the newest version only. Each push must answer the very next request, each request be answered
wholly by one version, and nothing may grow: memory of all processes, files, rows. Prints a table, and exits with 1 if
one of these does not hold.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from tqdm import tqdm

from peftserve.server.cli.errors import CommandError
from peftserve.server.demo import DEMO_ADAPTERS

from ..server_process import family
from .copies import Copies
from .own_server import started

NAME = "policy"
FLAGS = ("--keep-versions", "1")
LOOKS = 10  # at memory and files, over all pushes
SETTLING = 30.0  # seconds in which what has been superseded must go
GROWTH = 1.1  # of memory from the first half of the looks to the last one, which noise may make


@dataclass
class Pushed:
    """What was seen. seconds: of each push. answers: of the clients. looks: (pushes, bytes of memory, files)."""

    seconds: list[float] = field(default_factory=list)
    answers: int = 0
    faults: list[str] = field(default_factory=list)
    looks: list[tuple[int, int, int]] = field(default_factory=list)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 if something grew or was answered by a wrong version."""
    arguments = _parse(words)
    with TemporaryDirectory(prefix="peftserve-pushes-") as temporary:
        try:
            pushed = run(arguments, Path(temporary))
        except CommandError as error:
            print(f"pushes: {error}", file=sys.stderr)
            return error.exit_code
    faults = [*pushed.faults[:5], *growth(pushed)]
    print(report(pushed))
    print("\n".join(faults) or "nothing grew, and no request was answered by a wrong version")
    return 1 if faults else 0


def run(arguments: argparse.Namespace, folder: Path) -> Pushed:
    """Start a server, push, and return what was seen. Raises CommandError."""
    copies = Copies(arguments.adapter or next(iter(DEMO_ADAPTERS.values())))
    with started(arguments.model, FLAGS, {}, folder) as server:
        return asyncio.run(_push(server.url, server.pid, folder / "state", copies, arguments))


async def _push(url: str, pid: int, state: Path, copies: Copies, arguments: argparse.Namespace) -> Pushed:
    pushed = Pushed()
    async with httpx.AsyncClient(base_url=url, timeout=300.0, trust_env=False) as http:
        await _send(http, copies, 0)
        clients = [asyncio.create_task(_ask_on(http, pushed)) for _ in range(arguments.clients)]
        for number in tqdm(range(1, arguments.pushes + 1), desc="push", disable=None):
            begun = time.perf_counter()
            version = await _send(http, copies, number)
            pushed.seconds.append(time.perf_counter() - begun)
            if await _ask(http) != version:
                pushed.faults.append(f"the request behind push {number} was answered by another version")
            if number % max(arguments.pushes // LOOKS, 1) == 0:
                pushed.looks.append((number, memory(family(pid)), len(list((state / "adapters").iterdir()))))
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        pushed.faults += [str(client.exception()) for client in clients if not client.cancelled()]
        pushed.faults += await _left(http, state)
    return pushed


async def _send(http: httpx.AsyncClient, copies: Copies, number: int) -> int:
    response = await http.post("/v1/adapters", data={"name": NAME}, files=copies.form(str(number)))
    response.raise_for_status()
    return int(response.json()["version"])


async def _ask(http: httpx.AsyncClient, tokens: int = 1) -> int:
    """Return the version that has answered a request."""
    body = {"model": NAME, "prompt": "select", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    response = await http.post("/v1/completions", json=body)
    response.raise_for_status()
    return int(response.headers["x-peftserve-adapter"].partition("@")[2])


async def _ask_on(http: httpx.AsyncClient, pushed: Pushed) -> None:
    """Ask again and again. Versions only go up."""
    last = 0
    while True:
        version = await _ask(http, 16)
        pushed.answers += 1
        if version < last:
            pushed.faults.append(f"version {version} has answered behind version {last}")
        last = version


async def _left(http: httpx.AsyncClient, state: Path) -> list[str]:
    """Return what is left of superseded versions when all is quiet."""
    deadline = time.monotonic() + SETTLING
    while len(left := [path.name for folder in ("adapters", "versions") for path in (state / folder).glob("*")]) > 0:
        ours = [name for name in left if name.startswith(NAME)]
        known = {card["digest"] for card in (await http.get("/v1/adapters")).json()["data"]}
        strange = [name for name in left if "@" not in name and "." not in name and name not in known]
        if (len(ours) == 1 and not strange) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    return [f"left behind: {len(ours)} records, {len(strange)} folders"] if len(ours) != 1 or strange else []


def memory(pids: set[int]) -> int:
    """Return the bytes of memory of processes, what they share counted once, without the files that they have mapped.

    Those are shared with whoever else has the same libraries, so that a process that ends elsewhere would add to ours.
    """
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total * 1024


def growth(pushed: Pushed) -> list[str]:
    """Return a sentence for what has grown: memory from the middle on, and files."""
    half = [num_bytes for _, num_bytes, _ in pushed.looks[: max(len(pushed.looks) // 2, 1)]]
    last = pushed.looks[-1][1]
    grown = [f"memory has grown from {max(half) >> 20} to {last >> 20} MiB"] if last > GROWTH * max(half) else []
    first, end = pushed.looks[0][2], pushed.looks[-1][2]
    return grown + ([f"there were {first} folders of adapters, and are {end}"] if end > first + LOOKS else [])


def report(pushed: Pushed) -> str:
    """Return the figures as a table."""
    ordered = sorted(pushed.seconds)
    p99 = ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)]
    lines = [
        f"{len(ordered)} pushes: median {statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms; "
        f"{pushed.answers} requests meanwhile",
        "pushes  memory MiB  folders",
        *(f"{number:6}  {num_bytes >> 20:10}  {folders:7}" for number, num_bytes, folders in pushed.looks),
    ]
    return "\n".join(lines)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swap.pushes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="to serve, with --adapter; without it, the demo")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="of which copies are pushed")
    parser.add_argument("--pushes", type=int, default=2000, metavar="N", help="(default: 2000)")
    parser.add_argument("--clients", type=int, default=4, metavar="N", help="that ask meanwhile (default: 4)")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
