"""What is made of an adapter before its slot is known, and how little is then left for the step loop."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from peftserve.adapters import primitives as p
from peftserve.adapters.bypass import Bypass, KVPrefix, SideAttention
from peftserve.kernels.bypass.layout import Group, RowSet, Segment
from peftserve.kernels.bypass.torch.backend import TorchBypass
from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.kernels.ops.side import SideOps
from peftserve.server.engine.adapters.attachments import Attachments
from peftserve.server.engine.adapters.packing import AdapterLayout, SiteGroups, pack

LAYERS, WIDTH, RANK = 5, 8, 3
SITES = SiteGroups(
    tuple(Group(WIDTH, (WIDTH, WIDTH)) for _ in range(LAYERS)),
    {f"{layer}.{name}": (layer, place) for layer in range(LAYERS) for place, name in enumerate("qv")},
)
_A, _B = torch.randn(RANK, WIDTH), torch.randn(WIDTH, RANK)


def everywhere(make: Callable[[], tuple[p.Primitive, ...]]) -> dict[str, tuple[p.Primitive, ...]]:
    return {name: make() for name in SITES.places}


def low_rank() -> p.LowRank:
    return p.LowRank(torch.randn(RANK, WIDTH), torch.randn(WIDTH, RANK))


def keys_and_values() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 2, 6), torch.randn(4, 2, 6)


BYPASSES: Mapping[str, Bypass] = {
    "lora": Bypass("LORA", everywhere(lambda: (low_rank(),))),
    "dora": Bypass("LORA", everywhere(lambda: (p.OutputScale(torch.randn(WIDTH)), low_rank()))),
    "vera": Bypass("VERA", everywhere(lambda: (p.SharedLowRank(_A, _B, torch.randn(RANK), torch.randn(WIDTH)),))),
    "ia3": Bypass("IA3", everywhere(lambda: (p.OutputScale(torch.randn(WIDTH)),))),
    "replacement": Bypass("LORA", everywhere(lambda: (p.Replacement(torch.randn(WIDTH, WIDTH)),))),
    "prefix": Bypass("PREFIX_TUNING", {}, prefix=KVPrefix(4, {i: keys_and_values() for i in range(LAYERS)})),
    "side attention": Bypass(
        "ADAPTION_PROMPT", {}, side_attention={i: SideAttention(*keys_and_values(), 0.5) for i in range(LAYERS)}
    ),
}


class Operators(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Bench:
    def __init__(self, kind: type[TorchBypass] | type[TritonBypass]) -> None:
        self.arena = torch.full((1 << 14,), float("nan"))
        limits = {} if kind is TorchBypass else {"max_slots": 4, "max_rows": 16}
        backend = kind(self.arena, SITES.groups, **limits)
        modules = {name: nn.Linear(WIDTH, WIDTH) for name in SITES.places}
        side = SideOps(dict.fromkeys(SITES.places, RowSet.TOKENS))
        self.attachments = Attachments(self.arena, backend, side, modules, None, SITES)
        self.used = 0

    def copy(self, bypass: Bypass) -> tuple[int, AdapterLayout, Mapping[str, int]]:
        """As the loader copies it: its place, its layout, and where its shared pieces begin."""
        blob = pack(bypass, SITES, torch.float32)
        start, shared = self.used, {}
        for key, data in [("", blob.data), *((piece.key, piece.data) for piece in blob.shared)]:
            self.arena[self.used : self.used + len(data)] = data
            shared[key], self.used = self.used, -(-(self.used + len(data)) // 32) * 32
        return start, blob.layout, shared


@pytest.fixture(params=[TorchBypass, TritonBypass])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.mark.parametrize("name", BYPASSES)
def test_an_attach_copies_one_row_whatever_the_adapter_has(bench: Bench, name: str) -> None:
    prepared = bench.attachments.prepare(*bench.copy(BYPASSES[name]))
    with Operators() as attaching:
        bench.attachments.attach(2, prepared)
    rows = ["select", "copy_"] if isinstance(bench.attachments.backend, TritonBypass) else []
    assert attaching.ran == rows
    with Operators() as detaching:
        bench.attachments.detach(2)
    assert len(detaching.ran) <= 2


def test_a_fused_scale_is_split_off_as_quickly(bench: Bench) -> None:
    attachments = bench.attachments
    attachments.attach(0, attachments.prepare(*bench.copy(BYPASSES["ia3"])))
    rides = attachments.backend.fuses_scale_and_bias
    segments = [Segment(0, 1.0, 0, 2)]
    assert attachments.run_in_the_backend(segments) is rides
    attachments.attach(1, attachments.prepare(*bench.copy(BYPASSES["replacement"])))
    with Operators() as settling:
        assert not attachments.run_in_the_backend([*segments, Segment(1, 1.0, 0, 2)])
    assert settling.ran == (["select", "copy_"] if rides else [])
    assert not attachments.run_in_the_backend(segments)


def test_what_was_prepared_reads_the_adapters_own_range(bench: Bench) -> None:
    attachments, bypass = bench.attachments, BYPASSES["prefix"]
    bench.copy(BYPASSES["lora"])
    attachments.attach(1, attachments.prepare(*bench.copy(bypass)))
    assert bypass.prefix is not None
    for layer, (keys, values) in attachments.prefix(1).items():
        for got, wanted in zip((keys, values), bypass.prefix.layers[layer], strict=True):
            assert torch.equal(got, wanted)
            assert got.untyped_storage().data_ptr() == bench.arena.untyped_storage().data_ptr()
    attachments.detach(1)
    attachments.attach(1, attachments.prepare(*bench.copy(BYPASSES["lora"])))
    assert not attachments.prefix(1)
    assert attachments.run_in_the_backend([Segment(1, 1.0, 0, 1)])


def test_preparing_changes_nothing_that_a_step_reads(bench: Bench) -> None:
    attachments = bench.attachments
    attachments.attach(0, attachments.prepare(*bench.copy(BYPASSES["dora"])))
    segments = [Segment(0, 1.0, 0, 2)]
    attachments.begin(segments, [])
    plans = attachments.side.plans
    for bypass in BYPASSES.values():
        attachments.prepare(*bench.copy(bypass))
    attachments.begin(segments, [])
    assert attachments.side.plans == plans
    assert attachments.run_in_the_backend(segments) is attachments.backend.fuses_scale_and_bias
