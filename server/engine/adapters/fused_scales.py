"""Scales and biases of outputs that are fused into the low-rank kernel, so that no operator runs for them.

The kernel scales what it finds: a scale is fused only where no operator has changed the output before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from peftserve.kernels.bypass.layout import BlobLayout, GroupLayout
from peftserve.kernels.ops.formulas import FORMULAS, Stage
from peftserve.kernels.ops.side import is_sum

from .packing import OpLayout, Place, SiteGroups

Ops = Mapping[str, tuple[OpLayout, ...]]

_ROWS = {"output_scale": "scales", "bias": "biases"}


class Fusion(NamedTuple):
    """A division of an adapter's work between the kernel and operators.

    groups: the low-rank layout, with the rows of `fused`. fused, rest: the ops that are in it, and those that are not.
    """

    groups: BlobLayout
    fused: Ops
    rest: Ops


def split(groups: BlobLayout, ops: Ops, sites: SiteGroups) -> Fusion:
    """Return the division of one adapter's work, for a kernel that takes rows."""
    fused = {site: found for site, there in ops.items() if (found := _fusable(site, there, sites))}
    rest = {site: tuple(op for op in there if op not in fused.get(site, ())) for site, there in ops.items()}
    result = dict(groups)
    for site, found in fused.items():
        group, position = sites.places[site]
        count = len(sites.groups[group].out_features)
        layout = result.get(group, GroupLayout(0, (0,) * count, (0,) * count))
        for op in found:
            layout = _with_row(layout, position, _ROWS[op.kind], op.places["d"])
        result[group] = layout
    return Fusion(result, fused, {site: there for site, there in rest.items() if there})


def conflict(fused: Ops, other: Ops) -> bool:
    """Return whether another adapter's operators meet outputs that `fused` scale, where both are on one row.

    They may change the output ahead of the kernel, or be no sum with the scale, so that both are to be added whole.
    """
    return any(other.get(site) for site in _scaled(fused))


def needs_whole(fused: Ops, rest: Ops) -> bool:
    """Return whether one adapter's operators and its fused scales are no sum, as a weight would need."""
    return any(not is_sum(_stages((*fused[site], *rest.get(site, ())))) for site in _scaled(fused))


def _scaled(fused: Ops) -> list[str]:
    return [site for site, found in fused.items() if any(op.kind == "output_scale" for op in found)]


def _stages(ops: Sequence[OpLayout]) -> set[Stage]:
    return {FORMULAS[op.kind].stage for op in ops}


def _fusable(site: str, ops: Sequence[OpLayout], sites: SiteGroups) -> tuple[OpLayout, ...]:
    if site not in sites.places:
        return ()
    group, position = sites.places[site]
    width = sites.groups[group].out_features[position]
    fits = [op for op in ops if op.kind in _ROWS and op.places["d"].shape == (width,) and op.places["d"].shared is None]
    kinds = [op.kind for op in fits]
    alone = not any(_changes_output(op) for op in ops if op not in fits)
    return tuple(op for op in fits if kinds.count(op.kind) == 1 and (alone or op.kind == "bias"))


def _changes_output(op: OpLayout) -> bool:
    return FORMULAS[op.kind].stage in (Stage.OUTPUT, Stage.ADD)


def _with_row(layout: GroupLayout, position: int, field: str, place: Place) -> GroupLayout:
    rows: list[int | None] = list(getattr(layout, field) or (None,) * len(layout.ranks))
    rows[position] = place.offset
    changes: dict[str, Any] = {field: tuple(rows)}
    return replace(layout, **changes)
