"""Batched forms of deltas that have a structure: how many calls they are, and how often they read what is shared.

What they compute is in `test_planner.py`, for every kind.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peftserve.kernels.ops.batched import BATCHED

from .makers import IN, drawn, make

WORK = ("_fft_r2c", "_fft_c2r", "clone", "_embedding_bag_forward_only", "bmm", "mm", "mul", "stack", "add", "_to_copy")


class Calls(TorchDispatchMode):
    """Counts operators that compute or move numbers, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name in WORK:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def calls(kind: str, adapters: int) -> Counter[str]:
    batched = BATCHED[kind]
    fields = batched.stack([make(kind, seed, 0) for seed in range(adapters)])
    x = drawn(1)(adapters, 2, IN)
    with Calls() as mode:
        batched.function(x, None, **fields)
    return mode.counts


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        ("spectral", {"_fft_r2c": 1, "clone": 1, "_embedding_bag_forward_only": 1, "_fft_c2r": 1}),
        ("circulant", {"_fft_r2c": 1, "clone": 1, "bmm": 1, "_fft_c2r": 1}),
    ],
)
def test_calls_are_as_many_for_any_number_of_adapters(kind: str, work: Mapping[str, int]) -> None:
    assert calls(kind, 2) == calls(kind, 8) == work


def test_shared_bases_are_read_once() -> None:
    """One product with the scales of each adapter, and one of all with the bases."""
    counts = [calls("shared_bases", adapters)["mm"] for adapters in (2, 8)]
    assert counts == [3, 9]


@pytest.mark.parametrize("change", [lambda op: op.fields["a"].clone(), lambda op: op.fields["a"][:, 1:]])
def test_other_bases_are_another_batch(change: Callable[..., torch.Tensor]) -> None:
    one, other = make("shared_bases", 1, 0), make("shared_bases", 2, 0)
    key = BATCHED["shared_bases"].key
    assert key(one) == key(other)
    assert key(type(one)(one.kind, {**one.fields, "a": change(one)})) != key(other)
