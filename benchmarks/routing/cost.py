"""What a route costs a request: the router's time for each kind, beside a plain adapter's name.

    python -m benchmarks.routing.cost [--routes 10000] [--rounds N] [--out FILE.json]

A registry on this machine's disk, as a server has it, first with the routes that are timed alone and then with so many
others. It is the thread's own time for one request: of each round, in which the kinds take turns, the longest of the
tenth part that was disturbed least, and of these the median. The match has 100 candidates of 10 examples each, and
prompts of 300 words, each asked once.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_file import NAME as REGISTRY
from peftserve.adapters.router import Router
from peftserve.adapters.routing.policies import targets_of
from peftserve.adapters.routing.query import PolicyNeeded, Query
from peftserve.adapters.routing.stored import FOLDER, RouteStore

from ..machine import machine
from ..tables import Table
from .prompts import Texts

BASE, ADAPTERS = "base", 4
CANDIDATES, EXAMPLES, WORDS = 100, 10, 300
CALLS = 50  # of one kind at a time
TABLE = Table({"route": "<24", "alone": "10.1f", "among": "10.1f", "over a name": "13.1f"})


@dataclass(frozen=True)
class Cost:
    """Microseconds of a request's resolution. alone: with the timed routes only. among: with all others, too."""

    alone: float
    among: float


def bodies(texts: Texts) -> dict[str, dict[str, object]]:
    """Return the timed routes' bodies by name, each after those that it names."""
    arms = [{"target": "a0", "weight": 0.9}, {"target": "a1", "weight": 0.1}]
    candidates = [
        {"target": f"a{i % ADAPTERS}", "examples": [texts.example(i) for _ in range(EXAMPLES)]}
        for i in range(CANDIDATES)
    ]
    return {
        "alias": {"kind": "alias", "target": "a0"},
        "alias of an alias": {"kind": "alias", "target": "alias"},
        "split": {"kind": "split", "arms": arms},
        "split by user": {"kind": "split", "arms": arms, "sticky": "user"},
        "split with a ramp": {"kind": "split", "arms": arms, "ramp": {"arm": 1, "from": 0, "to": 1, "seconds": 3600}},
        "mixture": {"kind": "mixture", "adapters": [{"name": "a0", "weight": 0.7}, {"name": "a1", "weight": 0.3}]},
        "fallback": {"kind": "fallback", "targets": ["a0", "a1"]},
        "match": {"kind": "match", "candidates": candidates, "threshold": 0},
    }


def name_of(title: str) -> str:
    """Return the name of the adapter or route that a line of the table is about."""
    return title.replace(" ", "-")


@contextmanager
def opened(folder: Path) -> Iterator[tuple[RouteStore, Router]]:
    """Open a registry with adapters and no routes."""
    with closing(AdapterRegistry(folder / REGISTRY)) as registry:
        for number in range(ADAPTERS):
            registry.add(f"a{number}", f"{number:064x}", AdapterFacts("LORA", 8, 100, {"low_rank": 1}, 2, 4))
        store = RouteStore(registry, BASE, targets_of, folder / FOLDER)
        yield store, Router(registry, BASE, store)


def put(store: RouteStore, routes: Mapping[str, dict[str, object]]) -> None:
    for title, body in routes.items():
        aliased = {**body, "target": name_of(str(body["target"]))} if "target" in body else body
        store.put(name_of(title), json.dumps(aliased))


def microseconds(router: Router, name: str, prompts: Sequence[str]) -> float:
    """Return the time of one resolution where nothing disturbs it, by the thread's own clock."""
    queries = [Query(lambda prompt=prompt: prompt, user=f"user {i}") for i, prompt in enumerate(prompts)]  # type: ignore[misc]
    times = []
    for query in queries:
        begin = time.thread_time_ns()
        router.resolve(name, query=query)
        times.append(time.thread_time_ns() - begin)
    return sorted(times)[len(times) // 10] / 1000


def measure(router: Router, titles: Sequence[str], texts: Texts, rounds: int) -> dict[str, float]:
    """Return the median over the rounds for each route; the first round counts for nothing."""
    times: dict[str, list[float]] = {title: [] for title in titles}
    for number in range(rounds + 1):
        for title in titles:
            prompts = [texts.prompt(WORDS) for _ in range(CALLS)]
            time_of_one = microseconds(router, name_of(title), prompts)
            if number:
                times[title].append(time_of_one)
    return {title: statistics.median(found) for title, found in times.items()}


def warm(router: Router, name: str) -> None:
    """Make a route's policy, as a server does at its first request."""
    try:
        router.resolve(name, query=Query(lambda: "a prompt"))
    except PolicyNeeded as needed:
        needed.make()


def costs(folder: Path, others: int, rounds: int) -> dict[str, Cost]:
    """Return what the base, an adapter and each route cost, by the title of the line."""
    texts = Texts(seed=0)
    routes = bodies(texts)
    titles = [BASE, "a0", *routes]
    with opened(folder) as (store, router):
        put(store, routes)
        for title in titles:
            warm(router, name_of(title))
        alone = measure(router, titles, texts, rounds)
        put(store, {f"other {i}": {"kind": "alias", "target": f"a{i % ADAPTERS}"} for i in range(others)})
        among = measure(router, titles, texts, rounds)
    return {title: Cost(alone[title], among[title]) for title in titles}


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        found = costs(Path(folder), arguments.routes, arguments.rounds)
    print(TABLE.heading())
    for title, cost in found.items():
        print(TABLE.line(title, cost.alone, cost.among, cost.among - found["a0"].among))
    if arguments.out is not None:
        rows = [{"route": title, "alone_us": cost.alone, "among_us": cost.among} for title, cost in found.items()]
        record = {"machine": machine(), "routes": arguments.routes, "rounds": arguments.rounds, "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=10_000, help="other routes, among which each is timed again")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
