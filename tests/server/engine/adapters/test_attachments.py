"""Slots whose scales and biases ride in the kernel, on a backend that keeps what it is told."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.kernels.bypass.layout import BlobLayout, Group, GroupLayout, RowSet, Segment
from peftserve.kernels.ops.side import SideOps
from peftserve.server.engine.adapters.attachments import Attachments
from peftserve.server.engine.adapters.packing import AdapterLayout, OpLayout, Place, SiteGroups

SITES = SiteGroups((Group(4, (4,)),), {"q": (0, 0)})
SCALED = AdapterLayout(ops={"q": (OpLayout("output_scale", {"d": Place(0, torch.Size([4]))}, {}),)})
TURNED = AdapterLayout(
    ops={"q": (OpLayout("pair_rotation", {n: Place(32, torch.Size([4])) for n in "dc"}, {"group": 4}),)}
)


class Backend:
    def __init__(self, fuses_scale_and_bias: bool) -> None:
        self.fuses_scale_and_bias = fuses_scale_and_bias
        self.layouts: dict[int, BlobLayout] = {}
        self.tokens: list[Segment] = []

    def prepare(self, base: int, layout: BlobLayout) -> BlobLayout:
        return layout

    def attach(self, slot: int, prepared: BlobLayout) -> None:
        self.layouts[slot] = prepared

    def detach(self, slot: int) -> None:
        del self.layouts[slot]

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], **_: object) -> bool:
        self.tokens = [*tokens]
        return True

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None: ...


def make(*, fuses_scale_and_bias: bool = True) -> tuple[Any, Attachments]:
    backend = Backend(fuses_scale_and_bias)
    side = SideOps({"q": RowSet.TOKENS})
    attachments = Attachments(torch.randn(256), backend, side, {"q": nn.Linear(4, 4)}, None, SITES)
    attachments.attach(0, attachments.prepare(0, SCALED, {}))
    attachments.attach(1, attachments.prepare(64, TURNED, {}))
    return backend, attachments


def test_a_step_of_riders_has_no_operators() -> None:
    backend, attachments = make()
    attachments.begin([Segment(0, 1.0, 0, 2)], [])
    assert backend.layouts[0] == {0: GroupLayout(0, (0,), (0,), scales=(0,))}
    assert not attachments.side.plans
    attachments.begin([Segment(0, 1.0, 0, 2), Segment(1, 1.0, 2, 3)], [])  # beside it, on rows of its own
    assert backend.layouts[0]
    assert [part.start for terms in attachments.side.plans["q"].stages.values() for part in terms.segments] == [2]


def test_a_rider_that_is_mixed_with_an_operator_becomes_one() -> None:
    backend, attachments = make()
    attachments.begin([Segment(0, 0.5, 0, 2), Segment(1, 0.5, 0, 2)], [])
    assert backend.layouts[0] == {}
    (terms,) = attachments.side.plans["q"].stages.values()
    assert [part.op.kind for part in terms.segments] == ["output_scale", "pair_rotation"]
    attachments.detach(0)
    attachments.attach(0, attachments.prepare(0, SCALED, {}))
    assert backend.layouts[0]


def test_a_backend_without_rows_gets_none() -> None:
    backend, attachments = make(fuses_scale_and_bias=False)
    attachments.begin([Segment(0, 1.0, 0, 2)], [])
    assert backend.layouts[0] == {}
    assert list(attachments.side.plans) == ["q"]


LOW_RANK = AdapterLayout(groups={0: GroupLayout(0, (2,), (32,))})
A_NORMS = AdapterLayout(ops={"norm": (OpLayout("output_scale", {"d": Place(0, torch.Size([4]))}, {}),)})
LONG = Segment(2, 1.0, 0, 10)


@pytest.fixture
def wide() -> tuple[Any, Attachments, SpareColumns]:
    """Slots: 0 scales, 1 rotates, 2 and 3 are of low rank, 4 scales a norm, which has no product."""
    arena, weights = torch.randn(256), {0: torch.randn(4, 4 + 16)}
    backend, columns = Backend(fuses_scale_and_bias=True), SpareColumns(arena, SITES.groups, weights, least_rows=4)
    side, modules = (
        SideOps({"q": RowSet.TOKENS, "norm": RowSet.TOKENS}),
        {"q": nn.Linear(4, 4), "norm": nn.LayerNorm(4)},
    )
    attachments = Attachments(arena, backend, side, modules, None, SITES, columns)
    for slot, layout in enumerate((SCALED, TURNED, LOW_RANK, LOW_RANK, A_NORMS)):
        attachments.attach(slot, attachments.prepare(0, layout, {}))
    return backend, attachments, columns


@pytest.mark.parametrize(
    ("beside", "left"),
    [
        ([], []),
        ([Segment(3, 1.0, 10, 13)], [Segment(3, 1.0, 10, 13)]),
        ([Segment(0, 1.0, 10, 20)], [Segment(0, 1.0, 10, 20)]),
        ([Segment(4, 1.0, 0, 20)], [Segment(4, 1.0, 0, 20)]),
        ([Segment(0, 1.0, 5, 20)], [LONG, Segment(0, 1.0, 5, 20)]),
        ([Segment(1, 1.0, 10, 20)], [LONG, Segment(1, 1.0, 10, 20)]),
    ],
    ids=["alone", "too few rows", "scales other rows", "a norm's", "scales the same rows", "changes the input"],
)
def test_a_steps_long_segments_run_in_columns_unless_operators_are_in_the_way(
    wide: tuple[Any, Attachments, SpareColumns], beside: list[Segment], left: list[Segment]
) -> None:
    backend, attachments, columns = wide
    assert attachments.begin([LONG, *beside], [])
    assert backend.tokens == left
    assert (columns.active, columns.whole) == (LONG not in left, not left)


def test_graphs_run_nothing_in_columns_and_slots_leave_them(wide: tuple[Any, Attachments, SpareColumns]) -> None:
    backend, attachments, columns = wide
    attachments.begin([LONG], [])
    attachments.begin([LONG], [], capacity=16)
    assert backend.tokens == [LONG]
    assert not columns.active
    attachments.detach(2)
    columns.check_integrity()
    assert not columns.begin([LONG._replace(slot=3)])
    assert columns.begin([LONG]) == [LONG]
