"""Slots whose scales and biases ride in the kernel, on a backend that keeps what it is told."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from peftserve.kernels.bypass.layout import BlobLayout, Group, GroupLayout, Rows, Segment
from peftserve.kernels.ops.side import SideOps
from peftserve.server.engine.adapters.attachments import Attachments
from peftserve.server.engine.adapters.packing import AdapterLayout, OpLayout, Place, SiteGroups

SITES = SiteGroups((Group(4, (4,)),), {"q": (0, 0)})
SCALED = AdapterLayout(ops={"q": (OpLayout("output_scale", {"d": Place(0, torch.Size([4]))}, {}),)})
TURNED = AdapterLayout(
    ops={"q": (OpLayout("pair_rotation", {n: Place(32, torch.Size([4])) for n in "dc"}, {"group": 4}),)}
)


class Backend:
    def __init__(self, takes_rows: bool) -> None:
        self.takes_rows = takes_rows
        self.layouts: dict[int, BlobLayout] = {}

    def prepare(self, base: int, layout: BlobLayout) -> BlobLayout:
        return layout

    def attach(self, slot: int, prepared: BlobLayout) -> None:
        self.layouts[slot] = prepared

    def detach(self, slot: int) -> None:
        del self.layouts[slot]

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], **_: object) -> bool:
        return True

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None: ...


def make(*, takes_rows: bool = True) -> tuple[Any, Attachments]:
    backend = Backend(takes_rows)
    side = SideOps({"q": Rows.TOKENS})
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
    assert [part.start for terms in attachments.side.plans["q"].phases.values() for part in terms.parts] == [2]


def test_a_rider_that_is_mixed_with_an_operator_becomes_one() -> None:
    backend, attachments = make()
    attachments.begin([Segment(0, 0.5, 0, 2), Segment(1, 0.5, 0, 2)], [])
    assert backend.layouts[0] == {}
    (terms,) = attachments.side.plans["q"].phases.values()
    assert [part.op.kind for part in terms.parts] == ["output_scale", "pair_rotation"]
    attachments.detach(0)
    attachments.attach(0, attachments.prepare(0, SCALED, {}))
    assert backend.layouts[0]


def test_a_backend_without_rows_gets_none() -> None:
    backend, attachments = make(takes_rows=False)
    attachments.begin([Segment(0, 1.0, 0, 2)], [])
    assert backend.layouts[0] == {}
    assert list(attachments.side.plans) == ["q"]
