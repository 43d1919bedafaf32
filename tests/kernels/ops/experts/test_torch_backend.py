from types import ModuleType

import pytest
import torch

from peftserve.kernels.ops.experts.combinations import all_combinations
from peftserve.kernels.ops.experts.torch_backend import TorchExpertTerms
from peftserve.kernels.ops.site_plan import OpSegment


def test_factors_are_not_copied(moe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that products read of adapters lies in the arena."""
    case = moe.Case(4)
    case.add("a", up_proj=16)
    segments: list[OpSegment] = case.segments([("a", 1.0, 0, 30)])
    terms = TorchExpertTerms(all_combinations({"": segments}, 30)[""])
    routing = terms.route(case.routing_of(30, 2), 4)
    storage, product = case.arena.untyped_storage().data_ptr(), torch.mm
    read = []

    def seen(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        read.append(factor.untyped_storage().data_ptr())
        return product(x, factor)

    monkeypatch.setattr(torch, "mm", seen)
    y = case.randn(60, 72)
    terms.add_("up_proj", case.randn(60, 60), y, routing)
    assert read == [storage] * 4
