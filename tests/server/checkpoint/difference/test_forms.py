import pytest
import torch

from peftserve.adapters.sites import Site, SiteKind
from peftserve.server.checkpoint.difference.forms import Changed, Limits, changed_module
from peftserve.server.checkpoint.difference.pair import Tensors

OUT, IN = 40, 30
LINEAR = Site("a", SiteKind.LINEAR, IN, OUT)
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(OUT, IN, generator=GENERATOR)


def changed(after: torch.Tensor, limits: Limits | None = None, dtype: torch.dtype = torch.float32) -> Changed:
    return changed_module(LINEAR, {"weight": Tensors(WEIGHT, after, dtype)}, limits or Limits())


def product(rank: int) -> torch.Tensor:
    return torch.randn(OUT, rank, generator=GENERATOR) @ torch.randn(rank, IN, generator=GENERATOR)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_least_rank_within_the_error(rank: int) -> None:
    after = WEIGHT + product(rank)
    found = changed(after, Limits(max_error=1e-4)).low_rank
    assert found is not None
    assert len(found.a) == rank
    assert found.error == pytest.approx(
        float((WEIGHT.double() + found.b.double() @ found.a.double() - after).abs().max())
    )
    assert found.error <= 1e-4
    assert changed(after).low_rank is None
    assert changed(after, Limits(max_error=1e-4, rank=rank - 1)).low_rank is None if rank > 1 else True


def test_factors_are_none_where_the_whole_is_smaller() -> None:
    after = WEIGHT + product(20)
    assert changed(after, Limits(max_error=1e-4)).low_rank is None
    assert changed(after, Limits(max_error=1e-4), torch.float16).low_rank is None
    capped = changed(after, Limits(rank=100)).low_rank
    assert capped is not None
    assert capped.num_bytes < OUT * IN * 4


def test_entries_that_a_float32_does_not_hold_are_no_sparse_form() -> None:
    after = WEIGHT.clone()
    after[3, 4] += 0.25
    found = changed(after).sparse
    assert found is not None
    assert (found.places.tolist(), found.error, found.rank_for(LINEAR)) == ([[3], [4]], 0.0, 1)
    before = WEIGHT.clone()
    before[3, 4] = 1e9
    tensors = {"weight": Tensors(before, WEIGHT, torch.float32)}
    assert changed_module(LINEAR, tensors, Limits()).sparse is None


def test_a_changed_bias() -> None:
    before, after = torch.randn(OUT, generator=GENERATOR), torch.randn(OUT, generator=GENERATOR)
    bias = Tensors(before, before + torch.where(after > 0, 0.5, 0.0), torch.float32)
    found = changed_module(LINEAR, {"weight": Tensors(WEIGHT, WEIGHT, torch.float32), "bias": bias}, Limits())
    assert found.sparse is None
    assert found.low_rank is None or found.low_rank.bias is not None
    huge = Tensors(torch.full((OUT,), 1e9), before, torch.float32)
    assert (
        changed_module(LINEAR, {"weight": Tensors(WEIGHT, WEIGHT, torch.float32), "bias": huge}, Limits()).low_rank
        is None
    )
