"""The primitives of an adapter as each rank has them: one function for each kind, over all ranks at once.

The outputs of a module that is cut by columns lie side by side: each rank has its rows of a primitive. Those of one
that is cut by rows are added up by the ranks, so what a primitive adds is cut by the features that it reads, and what
reads none (a bias) is added by the first rank alone. All that is linear in the module's output may be applied to a part
of the sum. Slices have the same shapes on every rank, so that they lie at the same places of each rank's memory.

Matrices whose structure is lost when they are cut are multiplied out first.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, NoReturn, TypeVar

import torch

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.adapters.primitives import (
    Bias,
    Circulant,
    Dense,
    ExpertLowRank,
    InputRotation,
    InputScale,
    Kronecker,
    LowRank,
    OutputScale,
    PairRotation,
    ParallelBottleneck,
    Primitive,
    Replacement,
    RoutedLowRank,
    SharedBases,
    SharedLowRank,
    Sparse,
    Spectral,
)
from peftserve.kernels.ops.formulas import FORMULAS

from .cuts import Cut, Features

P = TypeVar("P", bound=Primitive)
Slicer = Callable[[Any, Cut, int], list[Primitive]]
"""From a primitive, the cut of its module, and the number of ranks to what each rank has of it."""

_MULTIPLIED_OUT = (Kronecker, Spectral, Circulant, SharedBases)


def slice_primitive(primitive: Primitive, cut: Cut, ranks: int) -> list[Primitive]:
    """Return what each rank has of a primitive at a module that is cut so. Raises UnsupportedAdapter."""
    slicer = SLICERS.get(type(primitive))
    if slicer is None:
        _refuse(f"{primitive.kind} cannot be divided: it is no sum over the features of the module's input or output")
    return slicer(primitive, cut, ranks)


def unshared(primitive: Primitive, widths: tuple[int, int]) -> Primitive:
    """Return a primitive without tensors that other modules share, of which slices are shared by fewer or by none.

    widths: of the whole module's input and output.
    """
    if isinstance(primitive, SharedLowRank):
        width_in, width_out = widths
        a, b = primitive.a[:, :width_in], primitive.b[:width_out]
        return LowRank(primitive.d[:, None] * a, primitive.scale[:, None] * b)
    return multiplied_out(primitive, widths) if isinstance(primitive, _MULTIPLIED_OUT) else primitive


def multiplied_out(primitive: Primitive, widths: tuple[int, int]) -> Dense:
    """Return the matrix of a primitive that adds a linear map of the module's input."""
    values = {f.name: getattr(primitive, f.name) for f in fields(primitive)}
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in primitive.tensors().items()}
    dtype = next(t.dtype for t in primitive.tensors().values() if t.is_floating_point())
    width_in, width_out = widths
    function = FORMULAS[primitive.kind].function
    matrix = function(torch.eye(width_in), torch.zeros(width_in, width_out), **{**values, **tensors})
    return Dense(matrix.T.to(dtype).contiguous())


def _low_rank(primitive: LowRank, cut: Cut, ranks: int) -> list[Primitive]:
    a, b = _along(primitive.a, 1, cut.inputs, ranks), _along(primitive.b, 0, cut.outputs, ranks)
    return [LowRank(*factors) for factors in zip(a, b, strict=True)]


def _expert_low_rank(primitive: ExpertLowRank, cut: Cut, ranks: int) -> list[Primitive]:
    a, b = _along(primitive.a, 2, cut.inputs, ranks), _along(primitive.b, 1, cut.outputs, ranks)
    return [ExpertLowRank(*factors, primitive.parameter) for factors in zip(a, b, strict=True)]


def _routed_low_rank(primitive: RoutedLowRank, cut: Cut, ranks: int) -> list[Primitive]:
    if cut.inputs is not None:
        _refuse("Arrow's router reads all of a module's input, of which each rank has a part")
    return [replace(primitive, b=b) for b in _along(primitive.b, 2, cut.outputs, ranks)]


def _input_scale(primitive: InputScale, cut: Cut, ranks: int) -> list[Primitive]:
    return [InputScale(d) for d in _along(primitive.d, 0, cut.inputs, ranks)]


def _output_scale(primitive: OutputScale, cut: Cut, ranks: int) -> list[Primitive]:
    return [OutputScale(d) for d in _along(primitive.d, 0, cut.outputs, ranks)]


def _bias(primitive: Bias, cut: Cut, ranks: int) -> list[Primitive]:
    return [Bias(d) for d in _added_once(primitive.d, cut, ranks)]


def _input_rotation(primitive: InputRotation, cut: Cut, ranks: int) -> list[Primitive]:
    if cut.inputs is None:
        return [primitive] * ranks
    size = primitive.blocks.shape[-1]
    blocks = [_whole_blocks(features, size) for features in cut.inputs]
    if len(primitive.blocks) == 1:
        return [primitive] * ranks
    return [InputRotation(primitive.blocks[own]) for own in blocks]


def _pair_rotation(primitive: PairRotation, cut: Cut, ranks: int) -> list[Primitive]:
    for features in cut.outputs or ():
        _whole_blocks(features, primitive.group)
    d, c = (_along(t, 0, cut.outputs, ranks) for t in (primitive.d, primitive.c))
    return [PairRotation(*own, primitive.group) for own in zip(d, c, strict=True)]


def _parallel_bottleneck(primitive: ParallelBottleneck, cut: Cut, ranks: int) -> list[Primitive]:
    up, bias = (_added_once(t, cut, ranks) for t in (primitive.up, primitive.up_bias))
    return [replace(primitive, up=u, up_bias=b) for u, b in zip(up, bias, strict=True)]


def _dense(primitive: Dense, cut: Cut, ranks: int) -> list[Primitive]:
    rows = _along(primitive.w, 0, cut.outputs, ranks)
    return [Dense(_along(w, 1, cut.inputs, ranks)[rank]) for rank, w in enumerate(rows)]


def _sparse(primitive: Sparse, cut: Cut, ranks: int) -> list[Primitive]:
    """Cut single entries. The last row is filled up with zeros to the most entries that any rank has."""
    counts = primitive.starts.diff()
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    parts = [_entries(primitive, rows, cut, rank) for rank in range(ranks)]
    most = max(len(values) for _, _, values in parts)
    return [_filled(part, most, _width(cut.outputs, len(counts))) for part in parts]


_Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _entries(primitive: Sparse, rows: torch.Tensor, cut: Cut, rank: int) -> _Entries:
    """Return the rows, columns and values of the entries that a rank has, numbered as it numbers features."""
    columns, kept = primitive.columns.long(), torch.ones(len(rows), dtype=torch.bool)
    if cut.outputs is not None:
        rows, kept = _renumbered(rows, cut.outputs[rank])
    if cut.inputs is not None:
        columns, kept = _renumbered(columns, cut.inputs[rank])
    order = torch.argsort(rows[kept], stable=True)
    return rows[kept][order], columns[kept][order], primitive.values[kept][order]


def _renumbered(features: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of features among a rank's own, and which of them it has."""
    places = torch.full((max(_most(features), _most(own)) + 1,), -1)
    places[own] = torch.arange(len(own))
    found = places[features]
    return found, found >= 0


def _most(features: torch.Tensor) -> int:
    return int(features.max()) if features.numel() else 0


def _filled(entries: _Entries, count: int, width: int) -> Sparse:
    rows, columns, values = entries
    missing = count - len(values)
    rows = torch.cat([rows, rows.new_full((missing,), width - 1)])
    columns, values = (torch.cat([t, t.new_zeros(missing)]) for t in (columns, values))
    return Sparse(Sparse.row_starts(rows, width), columns.int(), values)


def _replacement(primitive: Replacement, cut: Cut, ranks: int) -> list[Primitive]:
    nothing: list[torch.Tensor | None] = [None] * ranks
    weights, biases = nothing, nothing
    if primitive.weight is not None:
        rows = _along(primitive.weight, 0, cut.outputs, ranks)
        weights = [_along(w, 1, cut.inputs, ranks)[rank] if w.dim() > 1 else w for rank, w in enumerate(rows)]
    if primitive.bias is not None:
        biases = [*_added_once(primitive.bias, cut, ranks)]
    return [Replacement(w, b) for w, b in zip(weights, biases, strict=True)]


def _along(tensor: torch.Tensor, axis: int, features: Features | None, ranks: int) -> list[torch.Tensor]:
    """Return each rank's features of one axis; all of them on every rank where these are not divided."""
    return [tensor] * ranks if features is None else [tensor.index_select(axis, own) for own in features]


def _added_once(tensor: torch.Tensor, cut: Cut, ranks: int) -> list[torch.Tensor]:
    """Return what each rank adds of something that reads no input: its outputs; or all, on the first of a sum."""
    if cut.inputs is None:
        return _along(tensor, 0, cut.outputs, ranks)
    return [tensor, *[torch.zeros_like(tensor)] * (ranks - 1)]


def _whole_blocks(features: torch.Tensor, size: int) -> torch.Tensor:
    """Return the blocks of `size` features that these consist of. Raises UnsupportedAdapter if they cut one."""
    firsts = features[::size]
    if len(features) % size or (firsts % size).any() or not torch.equal(_runs(firsts, size), features):
        _refuse(f"its rotations turn blocks of {size} features, of which a rank would have a part")
    return firsts // size


def _runs(firsts: torch.Tensor, size: int) -> torch.Tensor:
    return (firsts[:, None] + torch.arange(size)).flatten()


def _width(features: Features | None, whole: int) -> int:
    return whole if features is None else len(features[0])


def _refuse(why: str) -> NoReturn:
    raise UnsupportedAdapter(f"under --tensor-parallel-size {why}", param="target_modules")


SLICERS: Mapping[type[Primitive], Slicer] = {
    LowRank: _low_rank,
    ExpertLowRank: _expert_low_rank,
    RoutedLowRank: _routed_low_rank,
    InputScale: _input_scale,
    OutputScale: _output_scale,
    Bias: _bias,
    InputRotation: _input_rotation,
    PairRotation: _pair_rotation,
    ParallelBottleneck: _parallel_bottleneck,
    Dense: _dense,
    Sparse: _sparse,
    Replacement: _replacement,
}
