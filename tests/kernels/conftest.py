"""Cases for the bypass backends: adapters of any shape in one arena, work lists of any popularity."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import pytest
import torch

from peftserve.kernels.attention.layout import AttentionBackend, AttentionLayer, Span
from peftserve.kernels.attention.reference import naive_attend, naive_write
from peftserve.kernels.bypass.layout import BlobLayout, BypassBackend, Group, GroupLayout, RowSet, Segment
from peftserve.kernels.bypass.reference import naive_delta

DEVICE = "cpu"  # of the tensors of all cases; what --device says, from before the first test on


def pytest_configure(config: pytest.Config) -> None:
    global DEVICE
    DEVICE = config.getoption("--device")


@pytest.fixture(autouse=True, scope="session")
def _quickly(quick_interpreter: None) -> None:
    """Use the quick interpreter in all tests of kernels."""


@dataclass
class Case:
    """An arena with adapters in it, and NaN wherever no factor lies."""

    groups: tuple[Group, ...]
    dtype: torch.dtype = torch.float32
    device: str = field(default_factory=lambda: DEVICE)
    alignment: int = 32
    slots: dict[int, tuple[int, BlobLayout]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.arena = torch.full((1 << 21,), float("nan"), dtype=self.dtype, device=self.device)
        self.used = self.alignment

    def add(self, slot: int, ranks: Mapping[int, tuple[int, ...]]) -> None:
        """Write the factors of an adapter, by group the rank of each site.

        A slot that is added again gets other factors elsewhere.
        """
        base, layout = self.used, {}
        for index, per_site in ranks.items():
            group = self.groups[index]
            a = self._write(sum(per_site) * group.in_features, group.in_features)
            b = tuple(self._write(r * n, r) for r, n in zip(per_site, group.out_features, strict=True))
            layout[index] = GroupLayout(a - base, per_site, tuple(offset - base for offset in b))
        self.slots[slot] = (base, layout)

    def attach_all(self, backend: BypassBackend) -> None:
        for slot, (base, layout) in self.slots.items():
            backend.attach(slot, backend.prepare(base, layout))

    def input(self, group: int, rows: int) -> torch.Tensor:
        spec = self.groups[group]
        if spec.gather:
            return torch.randint(spec.in_features, (rows,), generator=self.generator).to(self.device)
        return self._randn(rows, spec.in_features)

    def output(self, group: int, position: int, rows: int) -> torch.Tensor:
        return self._randn(rows, self.groups[group].out_features[position])

    def reference(
        self, segments: Sequence[Segment], group: int, position: int, x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        return y.double() + naive_delta(self.arena, self.groups, self.slots, segments, group, position, x)

    def _randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device, self.dtype)

    def _write(self, size: int, fan_in: int) -> int:
        start = self.used
        self.arena[start : start + size] = self._randn(size) / max(fan_in, 1) ** 0.5
        self.used = start + -(-size // self.alignment) * self.alignment
        return start


def check_step(
    case: Case, backend: BypassBackend, tokens: Sequence[Segment], logits: Sequence[Segment], rows: int, tol: float
) -> None:
    """Check one step over every group and site against the reference, and other rows bit for bit."""
    backend.begin(tokens, logits)
    backend.lead_in()
    for index, group in enumerate(case.groups):
        segments = tokens if group.rows is RowSet.TOKENS else logits
        x = case.input(index, rows)
        before = [case.output(index, position, rows) for position in range(len(group.out_features))]
        after = [y.clone() for y in before]
        backend.add_(index, x, after)
        bare = [all(not s.start <= row < s.end for s in segments) for row in range(rows)]
        for position, (y, got) in enumerate(zip(before, after, strict=True)):
            assert_close(f"group {index} site {position}", case.reference(segments, index, position, x, y), got, tol)
            assert torch.equal(got[bare], y[bare])


@dataclass
class AttentionCase:
    """One layer's cache, and sequences in it at pages of their own; NaN wherever no token has been."""

    layer: AttentionLayer
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    num_pages: int = 128

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        places = (self.num_pages, self.page_size, self.layer.kv_heads)
        self.keys = torch.full((*places, self.layer.key_dim), float("nan"), dtype=self.dtype, device=DEVICE)
        self.values = torch.full((*places, self.layer.value_dim), float("nan"), dtype=self.dtype, device=DEVICE)
        self._free = torch.randperm(self.num_pages, generator=self.generator).tolist()

    def spans(self, sequences: Sequence[tuple[int, int]]) -> list[Span]:
        """Make a span for each (rows, context), after filling its context. Its pages are taken for good."""
        spans, row = [], 0
        for rows, context in sequences:
            pages = [self._free.pop() for _ in range(-(-(rows + context) // self.page_size))]
            spans.append(Span(row, rows, rows + context, pages))
            before = [Span(0, context, context, pages)]
            naive_write(before, self._randn(context, self.layer.kv_heads, self.layer.key_dim), self.keys)
            naive_write(before, self._randn(context, self.layer.kv_heads, self.layer.value_dim), self.values)
            row += rows
        return spans

    def inputs(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value (1, heads, rows, dim), of strides as transformers makes them."""
        layer = self.layer
        query = self._randn(rows, layer.heads, layer.key_dim)
        joined = self._randn(rows, layer.kv_heads, layer.key_dim + layer.value_dim)
        return query, joined[..., : layer.key_dim], joined[..., layer.key_dim :]

    def sinks(self) -> torch.Tensor | None:
        return self._randn(1, self.layer.heads, 1).flatten() if self.layer.sinks else None

    def bias(self) -> torch.Tensor | None:
        """Return biases of all positions: of ALiBi, shaken."""
        positions = self.num_pages * self.page_size
        slopes = torch.linspace(0.02, 0.3, self.layer.heads)[:, None]
        drawn = torch.randn(self.layer.heads, positions, generator=self.generator)
        made = slopes * torch.arange(positions) + drawn
        return made.to(DEVICE) if self.layer.biased else None

    def _randn(self, rows: int, heads: int, dim: int) -> torch.Tensor:
        made = torch.randn(1, rows, heads, dim, generator=self.generator)
        return made.to(DEVICE, self.dtype).transpose(1, 2)


def check_attention(
    case: AttentionCase, backend: AttentionBackend, spans: Sequence[Span], capacity: int | None, tol: float
) -> torch.Tensor:
    """Check one step of the only layer against the reference, and that the cache is the same, bit for bit."""
    used = sum(span.rows for span in spans)
    query, key, value = case.inputs(capacity or used)
    keys, values, sinks, bias = case.keys.clone(), case.values.clone(), case.sinks(), case.bias()
    naive_write(spans, key, keys)
    naive_write(spans, value, values)
    backend.begin(spans, capacity=capacity)
    got = backend.attend(0, query, key, value, case.keys, case.values, sinks, bias)
    assert torch.equal(case.keys.nan_to_num(9.0), keys.nan_to_num(9.0))
    assert torch.equal(case.values.nan_to_num(9.0), values.nan_to_num(9.0))
    expected = naive_attend(spans, case.layer, query, keys, values, sinks, bias)
    if used:
        assert_close("attention", expected[:used], got[:used], tol)
    assert not got[used:].any()
    return got


def assert_close(name: str, ref: torch.Tensor, got: torch.Tensor, tol: float) -> None:
    """The error's root mean square is under `tol` of the reference's, and no element is missing."""
    assert got.isfinite().all(), f"{name}: not finite"
    error = (ref - got.double()).square().mean().sqrt() / ref.double().square().mean().sqrt().clamp_min(1e-12)
    assert error <= tol, f"{name}: relative error {error:.2e} over {tol:.0e}"


POPULARITIES: Mapping[str, Sequence[int]] = {
    "identical": (0,) * 12,
    "distinct": (3, 1, 4, 0, 2),
    "uniform": (4, 0, 0, 2, 1, 3, 4, 1, 2, 3, 1, 0),
    "zipf": (0, 1, 0, 2, 0, 0, 1, 3, 0, 0, 4, 1),
    "skewed": (2, 2, 2, 2, 2, 2, 2, 0, 2, 2, 2, 2),
}
"""Which slot each segment runs: the axis along which batches of adapters differ (Punica)."""


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """Return this module to tests: nothing here is on sys.path."""
    return sys.modules[__name__]


@pytest.fixture(params=POPULARITIES.values(), ids=POPULARITIES.keys())
def popularity(request: pytest.FixtureRequest) -> Sequence[int]:
    slots: Sequence[int] = request.param
    return slots
