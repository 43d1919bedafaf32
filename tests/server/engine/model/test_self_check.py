"""The last check before requests are taken: chunks on pages must give what one plain pass gave."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.layout import Limits, Span
from peftserve.kernels.attention.torch.backend import TorchAttention
from peftserve.kernels.device.step_memory import StepMemory
from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.inputs import InputMemory
from peftserve.server.engine.model.kv_cache import KVCache
from peftserve.server.engine.model.loading import LoadedModel, load_model
from peftserve.server.engine.model.runner import ModelRunner
from peftserve.server.engine.model.self_check import check_paged_attention, run_largest_step

PAGE_SIZE, NUM_PAGES = 4, 8


@pytest.fixture
def loaded(oracle: ModuleType, tmp_path: Path) -> LoadedModel:
    return load_model(EngineConfig(model=str(oracle.tiny_model("llama", 0, tmp_path)), device="cpu"))


@pytest.fixture
def make_runner(loaded: LoadedModel, toy: SimpleNamespace) -> Callable[[type[TorchAttention]], ModelRunner]:
    def make(kind: type[TorchAttention]) -> ModelRunner:
        backend = kind([*loaded.attention.layers.values()], PAGE_SIZE, loaded.dtype, loaded.device)
        cache = KVCache(loaded.attention.layers, NUM_PAGES, PAGE_SIZE, loaded.dtype, loaded.device)
        inputs = InputMemory(StepMemory(loaded.device), toy.MOST_ROWS)
        return ModelRunner(loaded.model, loaded.attention, backend, cache, toy.NoHooks(), toy.NoBackend(), inputs)

    return make


@pytest.fixture
def check(loaded: LoadedModel, make_runner: Callable[..., ModelRunner]) -> Callable[[type[TorchAttention]], None]:
    def run(kind: type[TorchAttention] = TorchAttention) -> None:
        check_paged_attention(make_runner(kind), loaded.trace, PAGE_SIZE)

    return run


class LosesTheNewest(TorchAttention):
    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        key, value = key.clone(), value.clone()
        key[:, :, -1], value[:, :, -1] = 0, 0
        return super().attend(layer, query, key, value, *rest)


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


class Notes(TorchAttention):
    begun: Sequence[Span] = ()

    def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
        super().begin(spans, capacity=capacity)
        self.begun = spans


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        (Limits(rows=20, spans=5, positions=100), [20]),  # one sequence may have them all
        (Limits(rows=20, spans=5, positions=11), [8, 8, 4]),  # whole pages of each
        (Limits(rows=100, spans=5, positions=100), [32]),  # all that the cache holds
        (Limits(rows=100, spans=2, positions=9), [8, 8]),
        (Limits(rows=100, spans=100, positions=3), [3] * 8),  # a page each
    ],
)
def test_the_largest_step_is_as_large_as_one_may_be(
    make_runner: Callable[..., ModelRunner], limits: Limits, rows: list[int]
) -> None:
    runner = make_runner(Notes)
    run_largest_step(runner, limits, NUM_PAGES, PAGE_SIZE)
    assert isinstance(runner._backend, Notes)
    assert [span.rows for span in runner._backend.begun] == rows
    pages = [page for span in runner._backend.begun for page in span.pages]
    assert pages == list(range(len(pages)))


def test_a_model_whose_largest_step_fails_is_refused(make_runner: Callable[..., ModelRunner]) -> None:
    class RunsOut(TorchAttention):
        def attend(self, *args: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nby something")

    with pytest.raises(
        UnservableModel, match=r"20 tokens fails \(CUDA out of memory[^\n]*\); a lower --max-batch-tokens"
    ):
        run_largest_step(make_runner(RunsOut), Limits(20, 5, 100), NUM_PAGES, PAGE_SIZE)
