"""Loads the compiled loop for a type: compiles it, and checks it against the formula before it serves."""

import logging
from functools import cache

import torch

from ..layout import Group, GroupLayout
from ..torch.factors import view_factors
from ..torch.slices import LOOP, Slice, Way
from .compiler import CannotCompile, compiled
from .library import Loop
from .tables import GroupTables, plan_loops

logger = logging.getLogger(__name__)

ELEMENTS = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""The types that the loop is for, and what its source calls them."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # of the largest output


@cache
def load_loop(dtype: torch.dtype) -> Loop | None:
    """Return the loop for a type, or None where there is none; the log says why, once."""
    if (element := ELEMENTS.get(dtype)) is None:
        return None
    try:
        loop = Loop(str(compiled(element)))
    except (CannotCompile, OSError) as error:
        logger.warning("the bypasses of adapters run in torch's operators, which is slower: %s", error)
        return None
    if not agrees(loop, dtype):
        logger.warning("the bypasses of adapters run in torch's operators: the compiled loop gives other results")
        return None
    return loop


def agrees(loop: Loop, dtype: torch.dtype) -> bool:
    """Return whether the loop adds what the formula says: two segments that share a row, of odd widths and ranks."""
    generator = torch.Generator().manual_seed(0)
    group, ranks, x_width, widths = Group(67, (130, 35)), (5, 12), 67, (130, 35)
    sizes = [sum(ranks) * x_width, *(rank * width for rank, width in zip(ranks, widths, strict=True))]
    arena = torch.randn(sum(sizes), generator=generator).mul_(0.1).to(dtype)
    factors = view_factors(arena, 0, group, GroupLayout(0, ranks, (sizes[0], sizes[0] + sizes[1])))
    x = torch.randn(7, x_width, generator=generator).to(dtype)
    outputs = [torch.randn(7, width, generator=generator).to(dtype) for width in widths]
    slices = [Slice(factors, weight, *rows, Way(LOOP, LOOP)) for weight, rows in ((1.0, (0, 5)), (-0.5, (4, 6)))]
    wanted = [y.double() for y in outputs]
    for s in slices:
        h = s.weight * (x[s.start : s.end].double() @ factors.a.double())
        for y, part, b in zip(wanted, h.split(ranks, 1), factors.b, strict=True):
            y[s.start : s.end] += part @ b.double()
    plan_loops(loop, [GroupTables(group)], {0: slices})[0].add_(x, outputs)
    pairs = zip(wanted, outputs, strict=True)
    return all((want - got).abs().max() <= TOLERANCE[dtype] * want.abs().max() for want, got in pairs)
