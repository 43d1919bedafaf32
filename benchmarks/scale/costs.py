"""What a replica takes for a step, a prompt and a load, in seconds, from what was measured on real ones.

Steps and prompts are those of one H200 (`results/h200_steps.json`), 8 layers of an 8B Llama, here for all 32: four
times as long but for the head, which is there once. What adapters add to a step grows with the ranks of those in it.
Loads are those of `results/swap.json`, and from afar what the H200's host took to read and compile 64 adapters.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

RESULTS = Path(__file__).parents[1] / "results"
LAYERS = 32
RANK = 16  # of the adapters that were measured
BYTES_A_RANK = 84_000_000 / RANK  # on all linears of an 8B Llama, in 16 bits
HEAD = 2 * 128_256 * 4_096  # bytes of its head
FETCHED = 64 * 21_000_000 / 6.1  # bytes a second: 64 adapters of 21 MB were read and compiled in 6.1 s
MAX_RUNNING = 256

Origin = Literal["host", "disk", "afar"]


@dataclass(frozen=True)
class Costs:
    """step: of so many sequences, whose different adapters have so much rank together. token: of a prompt.

    byte: of an adapter, by where it comes from.
    """

    step: Callable[[int, float], float]
    token: float
    byte: Mapping[Origin, float]


def measured(results: Path = RESULTS) -> Costs:
    """Return the costs of a replica with one H200."""
    steps, swap = (json.loads((results / name).read_text()) for name in ("h200_steps.json", "swap.json"))
    head = HEAD / steps["machine"]["bandwidth"]
    shown = swap["smollm"]["first_token"]["extra_ms"]
    size = swap["smollm"]["adapter_bytes"]
    [prompts] = [one for one in steps["prefill"] if one["adapters"] == 8]
    token = _whole(prompts["ms"] / 1000, prompts["layers"], head) / (prompts["prompts"] * prompts["tokens"])
    loads: dict[Origin, float] = {
        "host": shown["host"] / 1000 / size,
        "disk": shown["disk"] / 1000 / size,
        "afar": 1 / FETCHED,
    }
    return Costs(_steps(steps["decode"], head), token, loads)


def _steps(points: list[dict[str, Any]], head: float) -> Callable[[int, float], float]:
    """Return the time of a step between the measured ones: straight lines over sequences, and over ranks."""
    whole = {
        (one["sequences"], one["adapters"]): _whole(one["step_ms"] / 1000, one["layers"], head)
        for one in points
        if one["loaded"]
    }
    sizes = sorted({sequences for sequences, _ in whole})
    most = {size: max(adapters for sequences, adapters in whole if sequences == size) for size in sizes}
    first = [whole[size, 1] for size in sizes]
    # Of one sequence there is one adapter, and of 16 the difference is noise: both have the slope of 64.
    slopes = [max(0.0, (whole[size, most[size]] - whole[size, 1]) / max(most[size] - 1, 1)) for size in sizes]
    slopes = [slope or slopes[sizes.index(64)] for slope in slopes]
    range_of = np.arange(MAX_RUNNING + 1)
    one_adapter = np.interp(range_of, sizes, first).tolist()
    each_more = np.interp(range_of, sizes, slopes).tolist()

    def step(sequences: int, ranks: float) -> float:
        return float(one_adapter[sequences] + each_more[sequences] * max(0.0, ranks / RANK - 1))

    return step


def _whole(seconds: float, layers: int, head: float) -> float:
    return (seconds - head) * LAYERS / layers + head
