"""Mixers that forget are found, however little of a state shows in numbers; others are not taken for them."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from peftserve.server.engine.model.state.continuing import find_forgetful
from peftserve.server.engine.model.state.watching import WatchedCache

IDS = torch.arange(3, 27)


@torch.no_grad()
@pytest.mark.parametrize(("name", "forget"), [("granitemoehybrid", False), ("mamba", True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forgetful_are_told_in_any_type_and_with_weak_states(
    oracle: ModuleType, name: str, forget: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = oracle.plain_model(oracle.tiny_model(name, 0, tmp_path)).to(dtype)
    for key, parameter in model.named_parameters():
        if key.endswith("dt_proj.bias"):
            parameter.fill_(20.0)  # after which a state decays within a token
    cache = WatchedCache(model)
    cache.run(model, IDS)
    assert find_forgetful(model, IDS, cache.calls) == (set(cache.calls) if forget else set())


@torch.no_grad()
def test_all_are_taken_for_forgetful_where_a_prompt_is_too_short_to_tell(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.plain_model(oracle.tiny_model("lfm2", 0, tmp_path))
    cache = WatchedCache(model)
    cache.run(model, IDS[:3])
    assert find_forgetful(model, IDS[:3], cache.calls) == set(cache.calls)
