"""Linears whose outputs for a row depend on the other rows of a call, run so that each sequence is on its own.

transformers runs a prompt as a whole and then one token at a time. So rows of one sequence are taken together here, and
those of others apart: what is in the batch beside a request changes nothing of its answer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .rounding import mixes_rows, quantised_linears

Forward = Callable[[torch.Tensor], torch.Tensor]


class StepSpans:
    """The rows of the step that runs, sequence by sequence.

    offsets: where each sequence's rows begin, and the end of the last. The runner sets it before each step.
    """

    def __init__(self) -> None:
        self.offsets: Sequence[int] = (0,)

    def of(self, rows: int) -> Sequence[int]:
        """Return the offsets for an input of so many rows; one that is no whole step is of single rows."""
        return self.offsets if self.offsets[-1] == rows else range(rows + 1)


def separate_mixing(model: nn.Module, dtype: torch.dtype) -> StepSpans | None:
    """Run linears whose rows depend on each other sequence by sequence. Returns what says where these are, if any.

    dtype: of activations. To be called before anything else wraps a linear's `forward`.
    """
    mixing = [linear for _, linear in quantised_linears(model) if mixes_rows(linear, dtype)]
    if not mixing:
        return None
    spans = StepSpans()
    run_separately(mixing, spans)
    return spans


def run_separately(linears: Iterable[nn.Module], spans: StepSpans) -> None:
    """Replace the `forward` of linears by one that runs each span on its own."""
    for linear in linears:
        names = (kind.__name__ for kind in type(linear).__mro__)
        make = next((_IN_ONE_CALL[name] for name in names if name in _IN_ONE_CALL), _one_by_one)
        linear.forward = make(linear, spans)


def _one_by_one(linear: nn.Module, spans: StepSpans) -> Forward:
    """Return what calls a linear once for each span, whatever its kind."""
    base: Forward = linear.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        offsets = spans.of(len(rows))
        if len(offsets) <= 2:
            return base(x)
        y = torch.cat([base(rows[begin:end]) for begin, end in pairwise(offsets)])
        return y.view(*x.shape[:-1], y.shape[-1])

    return forward


def _llm_int8(linear: Any, spans: StepSpans) -> Forward:
    """Return LLM.int8() (Dettmers et al. 2022) with outliers for each span, in the operators of bitsandbytes.

    Inputs of at least the threshold are outliers. Columns in which a span has any are multiplied in the input's type,
    and all else of a row is rounded to int8 with one scale. The linear has run before, which moves its codes to its
    state.
    """
    ops, state = torch.ops.bitsandbytes, linear.state

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        half = rows.to(torch.float16)
        outliers = half.abs() >= state.threshold if state.threshold > 0 else torch.zeros_like(half, dtype=torch.bool)
        exact = _columns_by_span(outliers, spans.of(len(rows)))
        codes, scales, _ = ops.int8_vectorwise_quant(half.masked_fill(outliers, 0), 0.0)
        codes = codes.masked_fill(exact, 0)
        bias = None if linear.bias is None else linear.bias.to(x.dtype)
        y = ops.int8_scaled_mm(codes, state.CB, scales, state.SCB, bias=bias, dtype=x.dtype)
        if len(columns := exact.any(0).nonzero().flatten()):
            weight = ops.int8_vectorwise_dequant(state.CB[:, columns].contiguous(), state.SCB).to(x.dtype)
            y = y.addmm(rows.masked_fill(~exact, 0)[:, columns], weight.T)
        outputs: torch.Tensor = y.view(*x.shape[:-1], y.shape[-1])
        return outputs

    return forward


def _columns_by_span(marked: torch.Tensor, offsets: Sequence[int]) -> torch.Tensor:
    """Mark in all rows of a span the columns that any of them has marked. marked: bool (rows, columns)."""
    if len(offsets) == len(marked) + 1:
        return marked
    parts = [marked[begin:end].any(0).expand(end - begin, -1) for begin, end in pairwise(offsets)]
    return torch.cat(parts)


_IN_ONE_CALL: Mapping[str, Callable[[Any, StepSpans], Forward]] = {"Linear8bitLt": _llm_int8}
