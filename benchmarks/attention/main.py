"""Paged attention of one layer, timed on a GPU beside torch's own implementations and the least time for its bytes.

    python -m benchmarks.attention [--out FILE.json]     # Llama-3.1-8B's layer in bf16
    python -m benchmarks.attention --check               # correctness alone, at a small size; also without a GPU

Each contestant is checked against float64 before it is timed. It runs over so many layers that no cache holds them, in
one CUDA graph, and takes turns with the others.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from peftserve.kernels.attention.layout import AttentionLayer

from ..kernels.contender import Run
from ..kernels.roofline import Roofline, measure_roofline
from ..kernels.timing import captured, medians
from ..tables import Table
from .contestants import CONTESTANTS
from .problem import Attend, AttentionProblem, Sequences

CACHE_BYTES = 256 << 20  # of keys and values, under which a device's cache might hold them
ROUNDS, MOST_LAYERS, TOLERANCE = 20, 64, 1e-2
LLAMA_8B = AttentionLayer(32, 8, 128, 128, 128**-0.5)
SMALL = AttentionLayer(4, 2, 16, 16, 0.25)

STEPS: dict[str, Sequences] = {
    "1 decode of 512": [(1, 511)],
    "16 decodes of 512": [(1, 511)] * 16,
    "64 decodes of 512": [(1, 511)] * 64,
    "256 decodes of 512": [(1, 511)] * 256,
    "1 decode of 32768": [(1, 32767)],
    "16 decodes of 8192": [(1, 8191)] * 16,
    "64 decodes of 64 to 4096": [(1, 63 + 64 * i) for i in range(64)],
    "prefill of 2048": [(2048, 0)],
    "prefill of 512 after 1536": [(512, 1536)],
    "the same beside 64 decodes": [(1, 511)] * 64 + [(512, 1536)],
}
SMALL_STEPS: dict[str, Sequences] = {
    "3 decodes": [(1, 40)] * 3,
    "2 prefills": [(9, 40)] * 2,
    "mixed": [(1, 20), (9, 3), (5, 0)],
}


def ready(problem: AttentionProblem, prepare: Callable[[Attend], Run]) -> dict[str, Run]:
    """Return the contestants that can run the step and are right, each prepared for timing.

    Prints why others are not.
    """
    found = {}
    for name, make in CONTESTANTS.items():
        try:
            if (attend := make(problem)) is None:
                continue
            error = problem.error(attend)
            assert error < TOLERANCE, f"it is wrong by {error:.1e}"
            found[name] = prepare(attend)
        except Exception as failed:  # whatever it is, the others are still to be measured
            print(f"  without {name}: {type(failed).__name__}: {(str(failed).splitlines() or [''])[0]}")
    return found


def timed(name: str, sequences: Sequences, roofline: Roofline) -> dict[str, float]:
    """Return the microseconds of one layer by contestant, for those that run."""
    one = AttentionProblem(LLAMA_8B, sequences, torch.bfloat16, "cuda", 1)
    layers = max(2, min(MOST_LAYERS, -(-CACHE_BYTES // one.least_work().num_bytes)))
    problem = AttentionProblem(LLAMA_8B, sequences, torch.bfloat16, "cuda", layers)

    def over_layers(attend: Attend) -> None:
        for i in range(layers):
            attend(i)

    runs = ready(problem, lambda attend: captured(partial(over_layers, attend), "cuda"))
    times = {who: seconds / layers * 1e6 for who, seconds in medians(runs, "cuda", ROUNDS).items()}
    times["floor"] = roofline.seconds(problem.least_work()) * 1e6
    ratio = times["chosen"] / times["floor"] if "chosen" in times else None
    print(figures().line(name, *(times.get(who) for who in (*CONTESTANTS, "floor")), ratio))
    return times


def figures() -> Table:
    return Table({"": "<32", **dict.fromkeys((*CONTESTANTS, "floor"), "16.1f"), "chosen/floor": "14.2f"})


def check(device: str) -> list[dict[str, Run]]:
    """Check every contestant at the small steps, and print which are right."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found = list[dict[str, Run]]()
    for name, sequences in SMALL_STEPS.items():
        problem = AttentionProblem(SMALL, sequences, dtype, device, 1)
        found.append(ready(problem, lambda attend: partial(attend, 0)))
        print(f"{name}: right are {', '.join(found[-1]) or 'none'}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.check:
        return status(check("cuda" if torch.cuda.is_available() else "cpu"))
    roofline = measure_roofline("cuda", torch.bfloat16)
    device = torch.cuda.get_device_name()
    print(f"{device}: {roofline}; microseconds of a layer")
    print(figures().heading())
    found = {name: timed(name, sequences, roofline) for name, sequences in STEPS.items()}
    if args.out:
        args.out.write_text(json.dumps({"device": device, "us": found}) + "\n", encoding="utf-8")
    return status(list(found.values()))


def status(steps: Sequence[Mapping[str, object]]) -> int:
    """Return 1 if ours failed at any step."""
    return int(any("ours" not in found for found in steps))


if __name__ == "__main__":
    sys.exit(main())
