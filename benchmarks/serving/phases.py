"""Loads of one phase alone: prompts of which one token is made, and long outputs of short prompts."""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

from peftserve.server.cli.load import options
from peftserve.server.cli.load.options import Load

PHASES: Mapping[str, Mapping[str, Any]] = {
    "prefill": {"num_requests": 8, "concurrency": 4, "prompt_tokens": "512", "output_tokens": "1"},
    "decode": {"num_requests": 16, "concurrency": 16, "prompt_tokens": "16", "output_tokens": "128"},
}
FIRST_SEED = 1_000_000  # one seed's prompts begin alike, and a server may keep what it has read


def load_of(phase: str, models: Iterable[str], number: int) -> Load:
    """Return the load of a phase, in a closed loop; each request asks for the next of the models.

    number: of the round.
    """
    seed = FIRST_SEED + number * len(PHASES) + [*PHASES].index(phase)
    return options.load(Namespace(models=",".join(models), seed=seed, **PHASES[phase]))


def with_rates(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's report with prompt tokens a second; None where a request failed."""
    rate = report["asked"]["prompt_tokens"] / report["seconds"]
    return {**report, "prompt_tokens_per_second": None if report["all"]["failed"] else rate}
