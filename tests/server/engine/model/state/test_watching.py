"""transformers' cache, watched: what modules are given and return, chunk by chunk."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from peftserve.adapters.bypass import StateKey
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.state.watching import WatchedCache, cache_argument

IDS = torch.arange(3, 15)


@torch.no_grad()
def test_calls_of_modules_that_ask_for_state_are_noted(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.plain_model(oracle.tiny_model("lfm2", 0, tmp_path))
    cache = WatchedCache(model)
    cache.run(model, IDS[:8])
    cache.run(model, IDS[8:])
    assert cache.past == 12
    assert {name: [call.hidden.shape[1] for call in calls] for name, calls in cache.calls.items()} == {
        "model.layers.0.conv": [8, 4],
        "model.layers.2.conv": [8, 4],
    }
    assert cache.asked["model.layers.2.conv"] == {StateKey("conv", 2, 0)}
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_a_pass_with_it_gives_what_a_pass_without_gives(oracle: ModuleType, tmp_path: Path) -> None:
    """All the more for a model without attention, of which transformers' cache cannot tell how far it is."""
    model = oracle.plain_model(oracle.tiny_model("mamba2", 0, tmp_path))
    cache, outputs = WatchedCache(model), list[torch.Tensor]()
    handle = model.get_output_embeddings().register_forward_hook(lambda *given: outputs.append(given[-1]))
    cache.run(model, IDS[:7])
    cache.run(model, IDS[7:])
    handle.remove()
    torch.testing.assert_close(torch.cat(outputs, 1), model(IDS[None]).logits, atol=1e-4, rtol=1e-4)
    assert cache_argument(model) == "cache_params"


def test_a_pass_that_fails_says_so(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.plain_model(oracle.tiny_model("lfm2", 0, tmp_path))

    class Failing(nn.Module):
        def forward(self, *args: object, **kwargs: object) -> None:
            raise KeyError("nothing here")

    model.lm_head = Failing()
    with pytest.raises(UnservableModel, match="cannot run it with a cache: 'nothing here'"):
        WatchedCache(model).run(model, IDS)
    assert not any(module._forward_hooks for module in model.modules())
