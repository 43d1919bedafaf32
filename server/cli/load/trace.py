"""Traces: every request of a run, in order, drawn from a workload or read from a file of JSON lines."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random

import numpy as np
from numpy.random import Generator

from .workload import POPULARITIES, Workload, punica_lengths

LOWEST_ID, HIGHEST_ID = 32, 512  # ids that every vocabulary has, past most tokenizers' special tokens


@dataclass(frozen=True)
class Request:
    """One request. arrival: seconds after the start, None in a closed loop. seed: of the prompt's token ids."""

    arrival: float | None
    model: str
    prompt_tokens: int
    output_tokens: int
    seed: int

    def prompt(self) -> list[int]:
        """Return the prompt's token ids."""
        return Random(self.seed).choices(range(LOWEST_ID, HIGHEST_ID), k=self.prompt_tokens)


def draw(workload: Workload) -> list[Request]:
    """Draw a trace. Arrivals, models, lengths and prompts are drawn independently: changing one keeps the others."""
    streams = np.random.SeedSequence(workload.seed).spawn(4)
    arriving, choosing, measuring, writing = (np.random.default_rng(stream) for stream in streams)
    count = workload.num_requests
    popularity = POPULARITIES[workload.popularity]
    chosen = popularity(len(workload.models), count, workload.alpha, choosing).tolist()
    models = [workload.models[index] for index in chosen]
    prompts, outputs = _lengths(workload, measuring)
    seeds = writing.integers(0, 2**31, size=count).tolist()
    rows = zip(_arrivals(workload, arriving), models, prompts, outputs, seeds, strict=True)
    return [Request(*row) for row in rows]


def _arrivals(workload: Workload, random: Generator) -> Sequence[float | None]:
    """Draw the arrivals in seconds: the first at 0, with Gamma gaps of mean 1/rate. cv 1 is Poisson, more is burstier.

    All are None in a closed loop.
    """
    if workload.rate is None:
        return [None] * workload.num_requests
    if workload.cv == 0:
        gaps = np.full(workload.num_requests, 1 / workload.rate)
    else:
        shape = workload.cv**-2
        gaps = random.gamma(shape, 1 / (shape * workload.rate), size=workload.num_requests)
    found: list[float | None] = np.round(np.concatenate([[0.0], gaps[1:].cumsum()]), 6).tolist()
    return found


def _lengths(workload: Workload, random: Generator) -> tuple[list[int], list[int]]:
    count = workload.num_requests
    if workload.lengths == "punica":
        prompts, outputs = punica_lengths(count, random)
    else:
        prompts, outputs = workload.prompt_tokens.draw(count, random), workload.output_tokens.draw(count, random)
    return prompts.tolist(), outputs.tolist()


def save(trace: Iterable[Request], file: Path) -> None:
    """Write a trace as JSON, one request a line."""
    file.write_text("".join(json.dumps(asdict(request)) + "\n" for request in trace), encoding="utf-8")


def load(file: Path) -> list[Request]:
    """Read a trace, sorted by arrival. Raises ValueError that says which line is wrong, OSError without the file."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    trace = [_parse(line, number) for number, line in enumerate(lines, 1)]
    if not trace:
        raise ValueError("it has no request")
    if len({request.arrival is None for request in trace}) > 1:
        raise ValueError("some requests have an arrival and some have none")
    return sorted(trace, key=lambda request: request.arrival or 0.0)


def _parse(line: str, number: int) -> Request:
    try:
        return _checked(Request(**json.loads(line)))
    except (TypeError, ValueError) as error:
        names = ", ".join(field.name for field in fields(Request))
        raise ValueError(f"line {number} is no request with {names}: {error}") from None


def _checked(request: Request) -> Request:
    for name in ("prompt_tokens", "output_tokens", "seed"):
        if type(value := getattr(request, name)) is not int or value < (name != "seed"):
            raise ValueError(f"{name} is {value!r}")
    if not isinstance(request.model, str):
        raise ValueError(f"model is {request.model!r}")
    if request.arrival is not None and not 0 <= float(request.arrival) < float("inf"):
        raise ValueError(f"arrival is {request.arrival!r}")
    return request
