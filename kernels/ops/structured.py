"""Batched forms of deltas that have a structure: `spectral`, `circulant` and `shared_bases` of several adapters.

x is (segments, rows, in), as in `batched.py`. Segments may have other frequencies, and another number of them.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from .bases import scaled_bases
from .formulas import Op
from .spectral import circulants, spectra, transformed, wide


def spectral(
    x: torch.Tensor,
    _: None,
    *,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    out_features: int,
) -> torch.Tensor:
    """Return the spectral terms.

    starts: (segments · half + 1,). columns, values: of all segments, as `spectra` takes them.
    """
    return spectra(x, starts, columns, values, out_features)


def same_width(op: Op) -> Hashable:
    width: int = op.fields["out_features"]
    return width


def joined_spectra(ops: Sequence[Op]) -> Mapping[str, Any]:
    """Join the entries of all segments, one segment after the other, with `scale` multiplied into the values."""
    begins = [0]
    for op in ops:
        begins.append(begins[-1] + len(op.fields["values"]))
    starts = [op.fields["starts"][:-1] + begin for op, begin in zip(ops, begins, strict=False)]
    return {
        "starts": torch.cat([*starts, ops[-1].fields["starts"][-1:] + begins[-2]]),
        "columns": torch.cat([op.fields["columns"] * len(ops) + segment for segment, op in enumerate(ops)]),
        "values": torch.cat([wide(op.fields["values"]) * op.fields["scale"] for op in ops]),
        "out_features": ops[0].fields["out_features"],
    }


def circulant(x: torch.Tensor, _: None, *, weights: torch.Tensor, size: int) -> torch.Tensor:
    """Return the circulant terms. weights: (segments, frequencies, in / size, out / size)."""
    return circulants(x, weights, size)


def transformed_kernels(ops: Sequence[Op]) -> Mapping[str, Any]:
    """Transform the kernels once, in fp32: twice the bytes of 16-bit kernels, and no transform a step."""
    size = ops[0].fields["kernel"].shape[-1]
    return {
        "weights": torch.cat([transformed(op.fields["kernel"][None], op.fields["scale"]) for op in ops]),
        "size": size,
    }


def same_kernels(op: Op) -> Hashable:
    shape: torch.Size = op.fields["kernel"].shape
    return shape


def shared_bases(
    x: torch.Tensor,
    _: None,
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    d: Sequence[torch.Tensor],
    scale: Sequence[torch.Tensor],
    out_features: int,
) -> torch.Tensor:
    """Return the terms of shared bases. a, b: of all segments. d, scale: of each, where the adapter has them."""
    return scaled_bases(x, a, b, d, scale, out_features)


def same_bases(op: Op) -> Hashable:
    a, b, d, scale = (op.fields[name] for name in ("a", "b", "d", "scale"))
    return a.data_ptr(), b.data_ptr(), a.shape, b.shape, d.shape, scale.shape, op.fields["out_features"]


def listed_scales(ops: Sequence[Op]) -> Mapping[str, Any]:
    """List the scales of each adapter uncopied, since they are too large to be stacked."""
    own = {name: [op.fields[name] for op in ops] for name in ("d", "scale")}
    return {**own, **{name: ops[0].fields[name] for name in ("a", "b", "out_features")}}
