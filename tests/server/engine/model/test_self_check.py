"""The last check before requests are taken: chunks on pages must give what one plain pass gave."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from peftserve.kernels.attention import Span
from peftserve.kernels.torch_attention import TorchAttention
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
def check(loaded: LoadedModel, toy: SimpleNamespace) -> Callable[[type[TorchAttention]], None]:
    def run(kind: type[TorchAttention] = TorchAttention) -> None:
        backend = kind([*loaded.attention.layers.values()], PAGE_SIZE, loaded.dtype, loaded.device)
        cache = KVCache(loaded.attention.layers, 8, PAGE_SIZE, loaded.dtype, loaded.device)
        runner = ModelRunner(loaded.model, loaded.attention, backend, cache, toy.NoHooks(), toy.NoBackend())
        check_paged_attention(runner, loaded.trace, PAGE_SIZE)

    return run


class LosesTheNewest(TorchAttention):
    def write(self, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        key, value = key.clone(), value.clone()
        key[:, :, -1], value[:, :, -1] = 0, 0
        super().write(key, value, keys, values)


class MixesUpPages(TorchAttention):
    def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
        super().begin([span._replace(pages=span.pages[::-1]) if span.rows == 1 else span for span in spans])


def test_a_sound_model_passes(check: Callable[..., None]) -> None:
    check()


@pytest.mark.parametrize("kind", [LosesTheNewest, MixesUpPages])
def test_a_broken_cache_is_noticed(check: Callable[..., None], kind: type[TorchAttention]) -> None:
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
        loaded.attention.layers.clear()
        plain = loaded.model(input_ids=loaded.trace.token_ids[None], position_ids=positions, use_cache=False).logits[0]
        loaded.trace.logits.copy_(plain)
    with pytest.raises(UnservableModel, match="with the paged KV cache are off by"):
        check()
