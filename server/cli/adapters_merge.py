"""`peftserve adapters merge`: make a new adapter out of others on a running server, with a bar of progress."""

import argparse
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from peftserve.adapters.merging.kinds import KINDS

from .client import Server
from .errors import FAILED, CommandError
from .parser import checked
from .progress import progress
from .values import finite

PAUSE = 0.2  # seconds between two looks at the job
DONE = ("succeeded", "failed", "cancelled")


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `peftserve adapters merge` takes beside the server."""
    parser.add_argument("name", metavar="NAME", help="the new adapter; one that exists gets its next version")
    parser.add_argument("adapters", metavar="ADAPTER[=WEIGHT]", nargs="+", type=_weighted, help="weight: 1 if left out")
    parser.add_argument("--type", dest="combination_type", choices=[*KINDS], default="linear", help="default: linear")
    parser.add_argument("--density", type=checked(finite), help="share of entries that pruning keeps (default: 0.5)")
    parser.add_argument("--majority-sign-method", choices=["total", "frequency"], help="default: total")
    parser.add_argument("--svd-rank", type=int, help="rank of the result, for kinds that choose it")
    parser.add_argument("--seed", type=int, help="of what is drawn (default: 0)")


def _weighted(text: str) -> dict[str, Any]:
    name, equals, weight = text.partition("=")
    try:
        return {"name": name, "weight": finite(weight) if equals else 1.0}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: the weight behind '=' is no number") from None


def run_merge(arguments: argparse.Namespace) -> int:
    """Ask for a merge and follow it. Raises CommandError."""
    fields = ("name", "adapters", "combination_type", "density", "majority_sign_method", "svd_rank", "seed")
    body = {name: value for name in fields if (value := getattr(arguments, name)) is not None}
    with Server(arguments.url, arguments.api_key) as server:
        job = server.call("POST", "/v1/adapters/merge", json=body)
        card = _result(_follow(server, job))
    print(f"{card['name']}@{card['version']}: {card['method']}, rank {card['rank']}, {card['modules']} modules")
    return 0


def _follow(server: Server, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a job when it has ended. Whoever interrupts this cancels it."""
    path = f"/v1/jobs/{quote(job['id'], safe='')}"
    try:
        with progress("merging", 100) as show:
            while job["status"] not in DONE:
                show(round(100 * job["progress"]), 100)
                time.sleep(PAUSE)
                job = server.call("GET", path)
    except KeyboardInterrupt:
        server.call("DELETE", path)
        raise
    return job


def _result(job: Mapping[str, Any]) -> Mapping[str, Any]:
    if job["status"] == "failed":
        raise CommandError(job["error"]["message"], FAILED)
    if job["status"] == "cancelled":
        raise CommandError("the merge was cancelled", FAILED)
    card: Mapping[str, Any] = job["result"]
    return card
