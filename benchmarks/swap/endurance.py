"""What a server has more of after many swaps of adapters and many requests: memory, files, disk, and time.

    python -m benchmarks.swap.endurance [--swaps 10000] [--requests 100000] [--seconds S] [--out FILE.jsonl]

The demo's server, with small pools. A swap is one of four in turns, under a few names: an upload of a new version, a
load ahead of use, a change of the default, and a deletion; of requests so many run beside each that both end together.
Behind whole rounds of all names, everything is measured at rest. Drift is the median of the last quarter of the looks
over that of the second quarter: the first one fills pools and caches.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from peftserve.server.demo import DEMO_ADAPTERS

from ..machine import machine
from ..records import append
from ..server_process import family
from .copies import Copies
from .own_server import started

NAMES = 12
ROUND = 8 * NAMES  # swaps, after which the same adapters are there as before
LOOKS = 40
PROBES = 15  # requests at each look, of which the median counts
SHORT = {"max_tokens": 4, "ignore_eos": True}
POOLS = {"max-loras": 4, "max-cpu-loras": 8, "keep-versions": 2}
COUNTERS = ("peftserve_adapter_bytes", "peftserve_adapters_resident")  # prefixes of what /metrics says of tiers


def main() -> int:
    arguments = parse_arguments()
    quiet = ("--log-level", "warning")
    with tempfile.TemporaryDirectory() as folder, started(None, quiet, POOLS, Path(folder)) as server:
        looks = asyncio.run(endure(server.url, server.pid, Path(folder) / "state", arguments))
    report = {"swaps": looks[-1]["swaps"], "requests": looks[-1]["requests"], "drift": drifts(looks)}
    for name, (early, late, change) in report["drift"].items():
        print(f"{name:<44}{early:>14.4g}{late:>14.4g}{change:>10.2%}")
    append(arguments.out, part="endurance", command=" ".join(sys.argv[1:]), machine=machine(), **report)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after these, with whatever has run")
    parser.add_argument("--out", type=Path, help="also append the figures, as a line of JSON")
    return parser.parse_args()


async def endure(url: str, pid: int, state: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Swap and ask until all is done or the time is over. Returns what each look has found."""
    copies, looks = Copies(DEMO_ADAPTERS["snake"]), list[dict[str, float]]()
    begun, beside = time.monotonic(), arguments.requests / arguments.swaps
    due = iter(range(1, LOOKS + 1))
    share_due = next(due) / LOOKS
    async with httpx.AsyncClient(base_url=url, timeout=300.0, trust_env=False) as client:
        asked = 0
        for number in tqdm(range(-(-arguments.swaps // ROUND) * ROUND), desc="swaps", disable=None):
            share = int((number + 1) * beside) - asked
            await asyncio.gather(swap(client, copies, number), *(ask(client, asked + i) for i in range(share)))
            asked += share
            done = max((number + 1) / arguments.swaps, (time.monotonic() - begun) / arguments.seconds)
            if done >= share_due and (number + 1) % ROUND == 0:
                looks.append({"swaps": number + 1, "requests": asked, **await look(client, pid, state)})
                share_due = next((one / LOOKS for one in due if one / LOOKS > done), 1.0)
            if done >= 1 and (number + 1) % ROUND == 0:
                break
    return looks


async def swap(client: httpx.AsyncClient, copies: Copies, number: int) -> None:
    """Make one change: each name is uploaded, loaded, made the default, and in every other round deleted."""
    name, step = f"swap-{number // 4 % NAMES}", number % 4
    if step == 0:
        done = await client.post("/v1/adapters", data={"name": name}, files=copies.form(f"copy-{number}"))
    elif step == 1:
        done = await client.post(f"/v1/adapters/{name}/load")
    elif step == 2:
        done = await client.put("/v1/default-adapter", json={"adapter": name})
    else:
        done = await client.put("/v1/default-adapter", json={"adapter": None})
        if number // 4 // NAMES % 2:
            done = await client.delete(f"/v1/adapters/{name}")
    if done.status_code >= 500:
        raise SystemExit(f"swap {number}: {done.status_code} {done.text}")


async def ask(client: httpx.AsyncClient, number: int) -> None:
    """Ask whichever adapter: one that is there, one that may have gone by now, the base, or the default."""
    model = ("demo", "sql", "default", f"swap-{number % NAMES}")[number % 4]
    done = await client.post("/v1/completions", json={"model": model, "prompt": f"row {number % 997}", **SHORT})
    if done.status_code not in (200, 404):
        raise SystemExit(f"request {number}: {done.status_code} {done.text}")


async def look(client: httpx.AsyncClient, pid: int, state: Path) -> dict[str, float]:
    """Measure a server at rest: its processes, its folder, what it says of its tiers, and how long an answer takes."""
    waits = []
    for _ in range(PROBES):
        begun = time.perf_counter()
        await client.post("/v1/completions", json={"model": "sql", "prompt": "row", **SHORT})
        waits.append(time.perf_counter() - begun)
    text = (await client.get("/metrics")).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(COUNTERS)]
    found = {name: float(value) for name, value in lines}
    for number, process in enumerate(sorted(family(pid))):
        found |= {f"process {number} {name}": value for name, value in _of_process(process).items()}
    files = [path.stat().st_size for path in state.rglob("*") if path.is_file()]
    return {**found, "disk bytes": sum(files), "disk files": len(files), "latency ms": statistics.median(waits) * 1e3}


def _of_process(pid: int) -> dict[str, float]:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return {"rss MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "fds": len(os.listdir(f"/proc/{pid}/fd"))}


def drifts(looks: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Return of each figure the median of the second quarter of the looks, that of the last, and the change."""
    quarter = max(len(looks) // 4, 1)
    second = looks[quarter : 2 * quarter] or looks[:1]
    found = {}
    for name in looks[-1].keys() - {"swaps", "requests"}:
        early, late = (statistics.median(one.get(name, 0.0) for one in some) for some in (second, looks[-quarter:]))
        found[name] = (early, late, late / early - 1 if early else 0.0)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    sys.exit(main())
