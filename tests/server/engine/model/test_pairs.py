"""Every primitive beside every other, on one linear and on a head whose vocabulary a third makes larger.

Each row of a batch gets what its adapter gives alone by the plain formulas, and a mixture the weighted sum of what each
of its adapters adds alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peftserve.adapters import primitives as p
from peftserve.adapters.bypass import Bypass
from peftserve.kernels.bypass.layout import BlobLayout, Group, GroupLayout, RowSet, Segment
from peftserve.kernels.bypass.torch.backend import TorchBypass
from peftserve.kernels.bypass.torch.calibration import costs_of
from peftserve.kernels.bypass.torch.costs import Costs, ProductCost
from peftserve.kernels.bypass.torch.products import PLAIN, WIDE
from peftserve.kernels.bypass.torch.slices import LOOP
from peftserve.kernels.ops.formulas import FORMULAS, Op, Stage
from peftserve.kernels.ops.planner import MOST_ROWS, CallPlanner
from peftserve.kernels.ops.side import SideOps
from peftserve.server.engine.adapters.attachments import Attachments
from peftserve.server.engine.adapters.packing import SiteGroups, pack
from peftserve.server.engine.model.hooks import BypassHooks

IN, OUT, WIDER = 24, 32, 41
ROWS = 7

Made = tuple[p.Primitive, ...]
Draw = Callable[..., torch.Tensor]


def _net(draw: Draw, read: int) -> dict[str, Any]:
    weights = {"down": draw(3, read), "down_bias": draw(3), "up": draw(OUT, 3), "up_bias": draw(OUT)}
    return {**weights, "activation": "tanh"}


def _sparse(draw: Draw) -> p.Sparse:
    places = torch.arange(0, IN * OUT, 5, dtype=torch.int32)
    return p.Sparse(p.Sparse.row_starts(places // IN, OUT), places % IN, draw(len(places)))


def _spectral(draw: Draw) -> p.Spectral:
    starts = torch.arange(0, 2 * (OUT // 2 + 2), 2, dtype=torch.int32)
    count = int(starts[-1])
    return p.Spectral(starts, torch.arange(count, dtype=torch.int32) * 5 % IN, draw(count), 0.1, OUT)


MAKERS: Mapping[str, Callable[[Draw], Made]] = {
    "low_rank": lambda draw: (p.LowRank(draw(3, IN), draw(OUT, 3)),),
    "low_rank, twice": lambda draw: (p.LowRank(draw(2, IN), draw(OUT, 2)), p.LowRank(draw(5, IN), draw(OUT, 5))),
    "routed_low_rank": lambda draw: (p.RoutedLowRank(draw(3, 2, IN), draw(3, 2, OUT), draw(3, IN), 2, 0.5),),
    "shared_low_rank": lambda draw: (p.SharedLowRank(draw(4, IN + 3), draw(OUT + 5, 4), draw(4), draw(OUT)),),
    "input_scale": lambda draw: (p.InputScale(draw(IN)),),
    "output_scale": lambda draw: (p.OutputScale(draw(OUT)),),
    "bias": lambda draw: (p.Bias(draw(OUT)),),
    "input_rotation": lambda draw: (p.InputRotation(draw(IN // 4, 4, 4)),),
    "pair_rotation": lambda draw: (p.PairRotation(draw(OUT), draw(OUT), 8),),
    "bottleneck": lambda draw: (p.Bottleneck(**_net(draw, OUT)),),
    "bottleneck of the stream": lambda draw: (p.Bottleneck(**_net(draw, OUT), source="norm"),),
    "parallel_bottleneck": lambda draw: (p.ParallelBottleneck(**_net(draw, OUT), source="norm"),),
    "sparse": lambda draw: (_sparse(draw),),
    "kronecker": lambda draw: (p.Kronecker(draw(4, 6), draw(8, 4)),),
    "dense": lambda draw: (p.Dense(draw(OUT, IN)),),
    "shared_bases": lambda draw: (p.SharedBases(draw(5, IN + 3), draw(OUT + 1, 29), draw(5, 5), draw(5, IN), OUT),),
    "spectral": lambda draw: (_spectral(draw),),
    "circulant": lambda draw: (p.Circulant(draw(OUT // 8, IN // 8, 8), 0.5),),
    "replacement": lambda draw: (p.Replacement(draw(OUT, IN)),),
    "replacement of the bias": lambda draw: (p.Replacement(None, draw(OUT)),),
    "rows": lambda draw: (p.TokenRows(torch.tensor([0, 3, 31], dtype=torch.int32), draw(3, IN)),),
    # What methods put together at one module.
    "dora": lambda draw: (p.OutputScale(draw(OUT)), p.LowRank(draw(3, IN), draw(OUT, 3)), p.Bias(draw(OUT))),
    "boft": lambda draw: (p.InputRotation(draw(IN // 4, 4, 4)), p.OutputScale(draw(OUT)), p.Bias(draw(OUT))),
    "dora over another weight": lambda draw: (
        p.Replacement(draw(OUT, IN)),
        p.OutputScale(draw(OUT)),
        p.LowRank(draw(3, IN), draw(OUT, 3)),
    ),
    "replacement and rows": lambda draw: (
        p.TokenRows(torch.tensor([2, 30], dtype=torch.int32), draw(2, IN)),
        p.Replacement(draw(OUT, IN)),
    ),
}
WIDE_MAKERS: Mapping[str, Callable[[Draw], Made]] = {
    "larger vocabulary": lambda draw: (p.Replacement(draw(WIDER, IN), draw(WIDER)),),
    "another larger vocabulary": lambda draw: (p.Replacement(draw(WIDER - 4, IN), draw(WIDER - 4)),),
    "larger vocabulary and bias": lambda draw: (p.Replacement(draw(WIDER, IN), draw(WIDER)), p.Bias(draw(WIDER))),
    "larger vocabulary and rows": lambda draw: (
        p.TokenRows(torch.tensor([2, WIDER - 1], dtype=torch.int32), draw(2, IN)),
        p.Replacement(draw(WIDER, IN), draw(WIDER)),
    ),
}
NO_SUM = ("bottleneck", "bottleneck of the stream")  # no weight and no mixture


def _draw(seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: 0.5 * torch.randn(*shape, generator=generator)


def every_primitive_of_a_linear() -> set[type]:
    return {kind for kind in p.Primitive.__subclasses__() if FORMULAS[kind.kind].stage is not Stage.INSIDE}


class RowsBackend:
    """A backend that takes rows, as its protocol's formula reads."""

    fuses_scale_and_bias, generation = True, 0

    def __init__(self, arena: torch.Tensor, groups: Sequence[Group]) -> None:
        self._arena, self._groups = arena, groups
        self._slots: dict[int, tuple[int, BlobLayout]] = {}
        self._segments: dict[RowSet, Sequence[Segment]] = {}

    def prepare(self, base: int, layout: BlobLayout) -> tuple[int, BlobLayout]:
        return base, layout

    def attach(self, slot: int, prepared: tuple[int, BlobLayout]) -> None:
        self._slots[slot] = prepared

    def detach(self, slot: int) -> None:
        del self._slots[slot]

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], **_: object) -> bool:
        self._segments = {RowSet.TOKENS: tokens, RowSet.LOGITS: logits}
        return True

    def lead_in(self) -> None: ...

    def start(self, group: int, x: torch.Tensor) -> None: ...

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        spec, (y,) = self._groups[group], outputs
        assert y is not None
        before = y.clone()
        for slot, weight, start, end in self._segments[spec.rows]:
            base, layout = self._slots[slot]
            if entry := layout.get(group):
                y[start:end] += weight * self._delta(spec, base, entry, x[start:end], before[start:end])

    def _delta(self, spec: Group, base: int, entry: GroupLayout, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        width, rank = spec.out_features[0], entry.ranks[0]

        def take(offset: int, *shape: int) -> torch.Tensor:
            return self._arena[base + offset :][: torch.Size(shape).numel()].view(shape)

        delta = x @ take(entry.a, rank, spec.in_features).T @ take(entry.b[0], rank, width)
        for scale in {*entry.scales} - {None}:
            delta = delta + before * take(scale, width)
        for bias in {*entry.biases} - {None}:
            delta = delta + take(bias, width)
        return delta


FREE, DEAR = ProductCost(0.0), ProductCost(1.0)


def _torch(shrink: str, expand: str) -> Callable[[torch.Tensor, Sequence[Group]], Any]:
    """Of the ways to serve a segment, this one where it can be."""

    def make(arena: torch.Tensor, groups: Sequence[Group]) -> TorchBypass:
        shrinks, expands = (dict.fromkeys((PLAIN, WIDE), DEAR) for _ in range(2))
        if shrink == LOOP:
            return TorchBypass(arena, groups, Costs(shrinks, expands, FREE))
        return TorchBypass(arena, groups, Costs(shrinks | {shrink: FREE}, expands | {expand: FREE}))

    return make


BACKENDS: Mapping[str, Callable[[torch.Tensor, Sequence[Group]], Any]] = {
    "plain": _torch(PLAIN, PLAIN),
    "wide": _torch(WIDE, WIDE),
    "loop": _torch(LOOP, LOOP),
    "as measured": lambda arena, groups: TorchBypass(arena, groups, costs_of(arena)),
    "with rows": RowsBackend,
}


@dataclass
class Bench:
    """A model of one linear, and the slots of its adapters. head: the linear is the head."""

    head: bool
    backend: str
    stacked_rows: int

    def __post_init__(self) -> None:
        self.linear, self.norm = nn.Linear(IN, OUT), nn.LayerNorm(OUT)
        self.module, self.adapters = self.linear.forward, dict[int, Made]()
        sites = SiteGroups((Group(IN, (OUT,), RowSet.LOGITS if self.head else RowSet.TOKENS),), {"linear": (0, 0)})
        self._sites, self._arena, self._used = sites, torch.full((1 << 17,), float("nan")), 0
        modules: dict[str, nn.Module] = {"linear": self.linear, "norm": self.norm}
        self.side = SideOps({"linear": sites.groups[0].rows}, CallPlanner(self.stacked_rows))
        backend = BACKENDS[self.backend](self._arena, sites.groups)
        head = "linear" if self.head else None
        self.attachments = Attachments(self._arena, backend, self.side, modules, head, sites)
        self.hooks = BypassHooks(modules, sites, backend, self.side)

    def attach(self, slot: int, made: Made) -> None:
        blob = pack(Bypass("X", {"linear": made}), self._sites, torch.float32)
        self._arena[self._used : self._used + len(blob.data)] = blob.data
        shared, end = {}, self._used + len(blob.data)
        for piece in blob.shared:
            self._arena[end : end + len(piece.data)] = piece.data
            shared[piece.key], end = end, end + len(piece.data)
        self.attachments.attach(slot, self.attachments.prepare(self._used, blob.layout, shared))
        self.adapters[slot], self._used = made, -(-end // 32) * 32

    @torch.inference_mode()
    def run(self, segments: Sequence[Segment], x: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        self.attachments.begin(segments, segments)
        self.hooks.begin(True)
        self.norm(stream[None])
        y: torch.Tensor = self.linear(x[None])[0]
        self.hooks.end()
        return y

    @torch.inference_mode()
    def check(self, segments: Sequence[Segment], seed: int) -> None:
        x, stream = _draw(seed)(ROWS, IN), _draw(seed + 1)(ROWS, OUT)
        got = self.run(segments, x, stream)
        plain = F.pad(self.module(x), (0, got.shape[-1] - OUT))
        wanted = plain.clone()
        for slot, weight, *span in segments:
            rows = slice(*span)
            own = alone(self.module, self.adapters[slot], x[rows], stream[rows])
            width = own.shape[-1]
            wanted[rows, :width] += weight * (own - plain[rows, :width])
        torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-4)


def alone(module: Callable[..., torch.Tensor], made: Made, x: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """R(base(x + Σ in(x))), then Σ out of that, then Σ add, one primitive after the other."""
    stages: dict[Stage, list[Callable[[torch.Tensor], torch.Tensor]]] = {stage: [] for stage in Stage}
    for primitive in sorted(made, key=lambda one: isinstance(one, p.TokenRows)):
        stages[FORMULAS[primitive.kind].stage].append(_formula(module, primitive, x, stream))
    seen = x + sum(term(x) for term in stages[Stage.INPUT])
    y = module(seen)
    for replaced in stages[Stage.REPLACE]:
        y = replaced(y)
    y = y + sum(term(y) for term in stages[Stage.OUTPUT])
    return y + sum(term(y) for term in stages[Stage.ADD])


def _formula(
    module: Any, primitive: p.Primitive, x: torch.Tensor, stream: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    if isinstance(primitive, p.Replacement):
        linear = module.__self__
        weight = linear.weight if primitive.weight is None else primitive.weight
        return lambda _: F.linear(x, weight, linear.bias if primitive.bias is None else primitive.bias)
    op = Op(primitive.kind, {f.name: getattr(primitive, f.name) for f in fields(primitive)})
    return lambda y: op(stream if op.source else x, y)


LINEAR, HEAD = (False, MAKERS), (True, {**MAKERS, **WIDE_MAKERS})
"""Whether the site is the head, and what may be there."""

FORMS = [("as measured", 0), ("as measured", MOST_ROWS), ("with rows", MOST_ROWS)]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "makers"), [LINEAR, HEAD], ids=["linear", "head"])
@pytest.mark.parametrize(("backend", "stacked_rows"), FORMS)
def test_all_pairs_on_neighbouring_rows(head: bool, makers: Any, backend: str, stacked_rows: int) -> None:
    bench = Bench(head, backend, stacked_rows)
    for slot, make in enumerate(makers.values()):
        bench.attach(slot, make(_draw(slot)))
    for one, other in combinations_with_replacement(bench.adapters, 2):
        for weights in ((1.0, 1.0), (0.5, -0.4)):
            bench.check(_in_turns(one, other, *weights), one * 100 + other)


@pytest.mark.parametrize("backend", ["plain", "wide", "loop"])
def test_a_low_rank_bypass_beside_all_others_on_the_head_however_it_is_served(backend: str) -> None:
    head, makers = HEAD
    bench = Bench(head, backend, MOST_ROWS)
    for slot, make in enumerate(makers.values()):
        bench.attach(slot, make(_draw(slot)))
    for other in bench.adapters:
        bench.check(_in_turns(0, other, 1.0, 0.5), other)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "makers"), [LINEAR, HEAD], ids=["linear", "head"])
@pytest.mark.parametrize(("backend", "stacked_rows"), FORMS[1:])
def test_all_pairs_as_mixtures(head: bool, makers: Any, backend: str, stacked_rows: int) -> None:
    bench = Bench(head, backend, stacked_rows)
    mixed = [make for name, make in makers.items() if name not in NO_SUM]
    for slot, make in enumerate(mixed):
        bench.attach(slot, make(_draw(slot)))
        bench.attach(slot + len(mixed), make(_draw(1000 + slot)))
    for one, other in combinations_with_replacement(range(len(mixed)), 2):
        other += len(mixed)
        beside = [Segment(other, 1.0, 3, 4), Segment(one, 1.0, 4, 5), Segment(other, 1.0, 5, 6)]
        for a, b in ((0.7, -0.3), (1.0, 1.0)):
            bench.check([Segment(one, a, 1, 3), Segment(other, b, 1, 3), *beside], one * 100 + other)


def _in_turns(one: int, other: int, a: float, b: float) -> list[Segment]:
    """With rows of the bare base before each adapter's second turn."""
    return [Segment(one, a, 0, 2), Segment(other, b, 2, 3), Segment(one, a, 4, 5), Segment(other, b, 6, 7)]


def test_every_primitive_is_there() -> None:
    kinds = {type(primitive) for make in MAKERS.values() for primitive in make(_draw(0))}
    assert kinds == every_primitive_of_a_linear()
