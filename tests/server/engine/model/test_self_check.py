"""The last check before requests are taken: chunks on pages must give what one plain pass gave."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.kv_cache import KVCache
from peftserve.server.engine.model.loading import LoadedModel, load_model
from peftserve.server.engine.model.runner import ModelRunner
from peftserve.server.engine.model.self_check import check_paged_attention

PAGE_SIZE = 4


@pytest.fixture
def loaded(oracle: ModuleType, tmp_path: Path) -> LoadedModel:
    return load_model(EngineConfig(model=str(oracle.tiny_model("llama", 0, tmp_path)), device="cpu"))


@pytest.fixture
def check(loaded: LoadedModel, toy: SimpleNamespace) -> Callable[[type[KVCache]], None]:
    def run(kind: type[KVCache] = KVCache) -> None:
        cache = kind(loaded.attention.shapes, 8, PAGE_SIZE, loaded.dtype, loaded.device)
        runner = ModelRunner(loaded.model, loaded.attention, cache, toy.NoHooks(), toy.NoBackend())
        check_paged_attention(runner, loaded.trace, PAGE_SIZE)

    return run


class LosesTheNewest(KVCache):
    def write(self, layer: int, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().write(layer, rows[:-1], keys[:-1], values[:-1])


class MixesUpPages(KVCache):
    def read(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().read(layer, pages.flip(1))


def test_a_sound_model_passes(check: Callable[..., None]) -> None:
    check()


@pytest.mark.parametrize("kind", [LosesTheNewest, MixesUpPages])
def test_a_broken_cache_is_noticed(check: Callable[..., None], kind: type[KVCache]) -> None:
    with pytest.raises(UnservableModel, match="with the paged KV cache are off by"):
        check(kind)


def test_a_model_that_counts_positions_by_itself_is_noticed(loaded: LoadedModel, check: Callable[..., None]) -> None:
    """One plain pass cannot tell: there, the row of a token is its position."""

    def bias(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.3 * torch.arange(output.shape[1])[None, :, None]

    embedding = loaded.model.get_input_embeddings()
    embedding.register_forward_hook(bias)
    positions = torch.arange(len(loaded.trace.token_ids))[None]
    with torch.inference_mode():
        loaded.attention.shapes.clear()
        plain = loaded.model(input_ids=loaded.trace.token_ids[None], position_ids=positions, use_cache=False).logits[0]
        loaded.trace.logits.copy_(plain)
    with pytest.raises(UnservableModel, match="with the paged KV cache are off by"):
        check()
