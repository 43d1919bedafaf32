"""The accuracy and cost of spare columns, computed on a machine without a GPU.

    python -m benchmarks.kernels.columns

Errors: of y in bfloat16 against float64, as root mean square relative to that of y, in thousandths. All inputs are in
bfloat16; sums are exact before each rounding, so that only the roundings of each way are compared: `once` rounds y
alone, `h in two` and `h in one` are spare columns with h in two halves of 16 bits or in one, `behind` adds to outputs
that lie in memory, `PEFT` rounds h and the delta too.

Prefill: microseconds added to a layer of Llama-3.1-8B on an H200, by bytes and arithmetic. Products take what they took
without spare columns, in proportion to their depth, which counts in steps of 64; a launch of `fill` reads x once and
writes h, and attention's output is copied on the way.
"""

import sys
from collections.abc import Iterator

import torch

from ..tables import markdown

SHAPES = ((64, 4096, 1024, 16), (64, 4096, 1024, 64), (64, 1024, 1024, 8), (16, 14336, 512, 16))
WAYS = ("once", "h in two", "h in one", "behind", "PEFT")
RATIOS = (0.03, 0.3, 1.0, 3.0)  # of the delta to the base's output
GROUPS = ((4096, 6144, 3), (4096, 4096, 1), (4096, 28672, 2), (14336, 4096, 1))  # in, out, sites; Llama-3.1-8B
ATTENTION = 1  # the group whose input no piece computes
STEPS = {(4096, 1): (2225, 132), (4096, 8): (2222, 219), (8192, 1): (4438, 186), (8192, 8): (4436, 382)}
"""Rows and adapters of rank 16 to what the base's products and all that columns add took on an H200, in us."""
RANK = 16
BANDWIDTH = 4.0e6  # bytes a us that an H200 streams
LAUNCH = 4.5  # us, of one and the latency of what it waits for
DEPTH = 64  # of a product's steps


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().double()


def errors(rows: int, width: int, out: int, rank: int, ratio: float) -> dict[str, float]:
    """Return the error of each way, relative to the root mean square of y."""
    torch.manual_seed(0)
    x, w = rounded(torch.randn(rows, width)), rounded(torch.randn(out, width) / width**0.5)
    a, b = rounded(torch.randn(rank, width) / width**0.5), rounded(torch.randn(out, rank) * ratio / rank**0.5)
    base, h = x @ w.T, x @ a.T
    high, wanted = rounded(h), base + h @ b.T
    low = rounded(h - high)
    ways = {
        "once": wanted,
        "h in two": base + (high + low) @ b.T,
        "h in one": base + high @ b.T,
        "behind": rounded(base) + (high + low) @ b.T,
        "PEFT": rounded(base) + rounded(high @ b.T),
    }
    size = wanted.square().mean().sqrt()
    return {way: ((rounded(y) - wanted).square().mean().sqrt() / size).item() for way, y in ways.items()}


def added(rows: int, adapters: int, base: float) -> tuple[float, float]:
    """Return the microseconds added to a layer: by the wider products, and by the launches before them."""
    flops = sum(width * out for width, out, _ in GROUPS)
    wider = sum(-(-RANK * sites * adapters // DEPTH) * DEPTH * out for _, out, sites in GROUPS)
    read = sum(width + RANK * sites * adapters for width, _, sites in GROUPS) + GROUPS[ATTENTION][0]
    return base * wider / flops, len(GROUPS) * LAUNCH + rows * read * 2 / BANDWIDTH


def table() -> Iterator[str]:
    """Yield the lines of both tables, of errors and of times."""
    yield from markdown(("rows, width, outputs, rank", "delta to base", *WAYS), _error_rows())
    yield ""
    heading = ("rows x adapters", "products", "wider products", "fill", "predicted", "measured")
    yield from markdown(heading, _prefill_rows())


def _error_rows() -> Iterator[list[object]]:
    for shape in SHAPES:
        for ratio in RATIOS:
            found = errors(*shape, ratio)
            yield [", ".join(map(str, shape)), ratio, *(f"{1000 * found[way]:.3f}" for way in WAYS)]


def _prefill_rows() -> Iterator[list[object]]:
    for (rows, adapters), (base, measured) in STEPS.items():
        wider, fill = added(rows, adapters, base)
        yield [f"{rows} x {adapters}", base, *(f"+{us:.0f}" for us in (wider, fill, wider + fill, measured))]


def main() -> int:
    for line in table():
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
