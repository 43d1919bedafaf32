"""The problem that contenders solve: the bypasses of one step, with random factors, inputs and outputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from peftserve.kernels.bypass.layout import Group, Segment


@dataclass(frozen=True)
class Shape:
    """A model's linears. layer: the groups of one layer; the sites of a group share an input."""

    layers: int
    layer: tuple[Group, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.layer * self.layers


SHAPES = {
    "llama-8b": Shape(
        32,
        (
            Group(4096, (4096, 1024, 1024)),
            Group(4096, (4096,)),
            Group(4096, (14336, 14336)),
            Group(14336, (4096,)),
        ),
    ),
    "smollm-135m": Shape(
        30, (Group(576, (576, 192, 192)), Group(576, (576,)), Group(576, (1536, 1536)), Group(1536, (576,)))
    ),
}


@dataclass(frozen=True)
class Scenario:
    """A step of `tokens` rows for adapters of these ranks, one after the other and as evenly as they divide.

    With more adapters than tokens, the last ones have none. phase: "decode" or "prefill".
    """

    phase: str
    tokens: int
    ranks: tuple[int, ...]

    @property
    def segments(self) -> list[Segment]:
        """Return the segments of adapters that have rows; a segment's slot is the adapter's index."""
        count = len(self.ranks)
        lengths = [self.tokens // count + (index < self.tokens % count) for index in range(count)]
        bounds = pairwise(accumulate(lengths, initial=0))
        return [Segment(slot, 1.0, start, end) for slot, (start, end) in enumerate(bounds) if start < end]


@dataclass(frozen=True)
class Adapter:
    """One adapter's factors. a: by group, (sites · rank, in_features). b: by group and site, (rank, out_features).

    Both lie in the step's arena, B transposed; contenders that store them otherwise make copies of their own.
    """

    rank: int
    a: tuple[torch.Tensor, ...]
    b: tuple[tuple[torch.Tensor, ...], ...]


@dataclass(frozen=True)
class BypassProblem:
    """The bypasses of one step over several layers.

    groups: of `layers` layers, with factors of their own, so that small adapters are not read from a cache.
    x: by group of one layer, (tokens, in_features). y: by group of one layer and site, (tokens, out_features), which
    contenders add to. All layers share them, as in a model, where the last layer's are still in the cache.
    joined: by group of one layer, the tensor whose columns y's tensors are, for contenders that serve a group's sites
    as one product of the base leaves them; empty where each output is a tensor of its own.
    """

    scenario: Scenario
    groups: tuple[Group, ...]
    arena: torch.Tensor
    adapters: tuple[Adapter, ...]
    x: tuple[torch.Tensor, ...]
    y: tuple[tuple[torch.Tensor, ...], ...]
    joined: tuple[torch.Tensor, ...] = ()

    @property
    def layer_groups(self) -> int:
        """Return the number of groups of one layer: group i reads x[i % layer_groups]."""
        return len(self.x)

    @property
    def layers(self) -> int:
        return len(self.groups) // len(self.x)

    def calls(self) -> Iterator[tuple[int, torch.Tensor, tuple[torch.Tensor, ...]]]:
        """Yield each group's index, its input and its sites' outputs, in the order of a model."""
        for index in range(len(self.groups)):
            yield index, self.x[index % len(self.x)], self.y[index % len(self.x)]


ALIGNMENT = 64  # elements from the start of one factor to the next


def make_problem(
    scenario: Scenario,
    shape: Shape,
    *,
    layers: int,
    dtype: torch.dtype,
    device: str,
    join: bool = False,
    seed: int = 0,
) -> BypassProblem:
    """Make a problem of random numbers. A delta is about as large as the output that it is added to.

    join: a group's outputs are columns of one tensor.
    """
    generator = torch.Generator(device).manual_seed(seed)
    groups = shape.layer * layers
    sizes = [_size(rank, groups) for rank in scenario.ranks]
    arena = torch.empty(sum(sizes), dtype=dtype, device=device)
    adapters = tuple(
        _fill(part, rank, groups, generator) for rank, part in zip(scenario.ranks, arena.split(sizes), strict=True)
    )

    def normal(width: int) -> torch.Tensor:
        return torch.randn(scenario.tokens, width, dtype=torch.float32, device=device, generator=generator).to(dtype)

    x = tuple(normal(group.in_features) for group in shape.layer)
    if not join:
        y = tuple(tuple(normal(width) for width in group.out_features) for group in shape.layer)
        return BypassProblem(scenario, groups, arena, adapters, x, y)
    joined = tuple(normal(sum(group.out_features)) for group in shape.layer)
    y = tuple(whole.split(group.out_features, 1) for whole, group in zip(joined, shape.layer, strict=True))
    return BypassProblem(scenario, groups, arena, adapters, x, y, joined)


def _size(rank: int, groups: Sequence[Group]) -> int:
    return sum(_padded(rank * width) for group in groups for width in _widths(group))


def _widths(group: Group) -> tuple[int, ...]:
    return (len(group.out_features) * group.in_features, *group.out_features)


def _padded(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT


def _fill(part: torch.Tensor, rank: int, groups: Sequence[Group], generator: torch.Generator) -> Adapter:
    start = 0

    def take(rows: int, width: int, fan_in: int) -> torch.Tensor:
        nonlocal start
        view = part[start : start + rows * width].view(rows, width)
        start += _padded(rows * width)
        return view.normal_(0.0, fan_in**-0.5, generator=generator)

    a, b = [], []
    for group in groups:
        a.append(take(rank * len(group.out_features), group.in_features, group.in_features))
        b.append(tuple(take(rank, width, rank) for width in group.out_features))
    return Adapter(rank, tuple(a), tuple(b))
