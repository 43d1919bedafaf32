"""Primitives of each kind with random numbers, in one of two shapes, to test how many of them run together."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from peftserve.kernels.ops.formulas import Op

IN, OUT = 24, 36
Draw = Callable[..., torch.Tensor]


def drawn(seed: int, dtype: torch.dtype = torch.float64) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


SHARED = drawn(99)(5, IN + 3), drawn(98)(OUT + 5, 5)


def entries(draw: Draw, count: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Draw entries in compressed rows, some at the same place; some rows have none, and one has most."""
    numbers = torch.Generator().manual_seed(count)
    rows = torch.randint(1, OUT - 1, (count,), generator=numbers)
    rows[: count // 2] = 7
    rows = rows.sort().values
    columns = torch.randint(IN, (count,), generator=numbers, dtype=torch.int32)
    starts = torch.searchsorted(rows, torch.arange(OUT + 1), out_int32=True)
    return {"starts": starts, "columns": columns, "values": draw(count).to(dtype)}


def net(draw: Draw, width: int, read: int) -> dict[str, Any]:
    weights = {"down": draw(width, read), "down_bias": draw(width), "up": draw(OUT, width), "up_bias": draw(OUT)}
    return {**weights, "activation": "tanh"}


def routed(draw: Draw, experts: int) -> dict[str, Any]:
    factors = {"a": draw(experts, 3, IN), "b": draw(experts, 3, OUT), "prototypes": draw(experts, IN)}
    return {**factors, "top_k": 2, "temperature": 0.5}


BASES = drawn(97)(5, IN + 3), drawn(96)(OUT + 5, 29)


def frequencies(draw: Draw, count: int) -> dict[str, Any]:
    """Draw frequencies, of which some are in one row and some rows have none."""
    numbers = torch.Generator().manual_seed(count)
    rows = torch.randint(OUT // 2 + 1, (count,), generator=numbers).sort().values
    columns = torch.randint(IN, (count,), generator=numbers, dtype=torch.int32)
    starts = torch.searchsorted(rows, torch.arange(OUT // 2 + 2), out_int32=True)
    return {"starts": starts, "columns": columns, "values": draw(count), "scale": 1 / count, "out_features": OUT}


def scaled(draw: Draw, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
    """Draw scales for bases of rank 5."""
    return {"a": a, "b": b, "d": draw(5, 5), "scale": draw(5, IN), "out_features": OUT}


# Each in two shapes. Of entries and frequencies, of which there may be any number, they only differ in that.
MAKERS: Mapping[str, tuple[Callable[[Draw], Mapping[str, Any]], Callable[[Draw], Mapping[str, Any]]]] = {
    "input_rotation": (lambda draw: {"blocks": draw(3, 8, 8)}, lambda draw: {"blocks": draw(1, 6, 6)}),
    "pair_rotation": (
        lambda draw: {"d": draw(OUT), "c": draw(OUT), "group": 12},
        lambda draw: {"d": draw(OUT), "c": draw(OUT), "group": 2},
    ),
    "kronecker": (
        lambda draw: {"w1": draw(9, 6), "w2": draw(4, 4)},
        lambda draw: {"w1": draw(3, 2), "w2": draw(12, 12)},
    ),
    "sparse": (lambda draw: entries(draw, 40), lambda draw: entries(draw, 7)),
    "shared_low_rank": (
        lambda draw: {"a": SHARED[0], "b": SHARED[1], "d": draw(5), "scale": draw(OUT)},
        lambda draw: {"a": draw(2, IN), "b": draw(OUT, 2), "d": draw(2), "scale": draw(OUT)},
    ),
    "routed_low_rank": (lambda draw: routed(draw, 4), lambda draw: routed(draw, 3)),
    "bottleneck": (
        lambda draw: {**net(draw, 3, OUT), "source": ""},
        lambda draw: {**net(draw, 5, OUT), "source": "norm"},
    ),
    "parallel_bottleneck": (
        lambda draw: {**net(draw, 3, OUT), "source": "norm"},
        lambda draw: {**net(draw, 5, OUT), "source": "norm"},
    ),
    "spectral": (lambda draw: frequencies(draw, 40), lambda draw: frequencies(draw, 7)),
    "circulant": (
        lambda draw: {"kernel": draw(9, 6, 4), "scale": 0.5},
        lambda draw: {"kernel": draw(3, 2, 12), "scale": 2.0},
    ),
    "shared_bases": (lambda draw: scaled(draw, *BASES), lambda draw: scaled(draw, draw(5, IN), draw(OUT, 25))),
}


def make(kind: str, seed: int, shape: int) -> Op:
    return Op(kind, MAKERS[kind][shape](drawn(seed)))
