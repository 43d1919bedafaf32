"""The last checks before requests are taken: steps as requests bring them must give what plain passes gave."""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from peftserve.server.engine.model.loading import LoadedModel, forward_logits, load_model
from peftserve.server.engine.model.rehearsal import rehearsals
from peftserve.server.engine.model.runner import ModelRunner
from peftserve.server.engine.model.self_check import StartCheck, run_largest_step

PAGE_SIZE, NUM_PAGES, FEW_PAGES = 4, 24, 8
WIDE = Limits(rows=64, spans=8, positions=256)


@pytest.fixture
def loaded(oracle: ModuleType, tmp_path: Path) -> LoadedModel:
    return load_model(EngineConfig(model=str(oracle.tiny_model("llama", 0, tmp_path)), device="cpu"))


@pytest.fixture
def make_runner(loaded: LoadedModel, toy: SimpleNamespace) -> Callable[..., ModelRunner]:
    def make(
        kind: Callable[..., TorchAttention], num_pages: int = NUM_PAGES, model: LoadedModel = loaded
    ) -> ModelRunner:
        layers = model.attention.layers
        backend = kind([*layers.values()], PAGE_SIZE, model.dtype, model.device)
        cache = KVCache(layers, num_pages, PAGE_SIZE, model.dtype, model.device)
        inputs = InputMemory(StepMemory(model.device), toy.MOST_ROWS)
        return ModelRunner(model.model, model.attention, backend, cache, toy.NoHooks(), toy.NoBackend(), inputs)

    return make


@pytest.fixture
def check(loaded: LoadedModel, make_runner: Callable[..., ModelRunner]) -> Callable[..., None]:
    def run(kind: Callable[..., TorchAttention] = TorchAttention, model: LoadedModel = loaded) -> None:
        StartCheck(model.rehearsals, WIDE, NUM_PAGES, PAGE_SIZE).run(make_runner(kind, model=model))

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


class MixesUpDecodes(TorchAttention):
    """Is right for one sequence, and for several of which none or some decode."""

    def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
        if len(spans) > 1 and all(span.rows == 1 for span in spans):
            spans = [spans[0], *(span._replace(pages=spans[0].pages) for span in spans[1:])]
        super().begin(spans)


class SeesOneChunk(TorchAttention):
    """Is right for prompts of one chunk, and for decodes."""

    def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
        super().begin([span._replace(total=span.rows) if span.rows > 1 else span for span in spans])


def test_a_sound_model_passes(check: Callable[..., None]) -> None:
    check()


@pytest.mark.parametrize("kind", [LosesTheNewest, MixesUpPages, MixesUpDecodes, SeesOneChunk])
def test_a_broken_cache_is_noticed(check: Callable[..., None], kind: type[TorchAttention]) -> None:
    with pytest.raises(UnservableModel, match=r"with the paged KV cache, .* are off by"):
        check(kind)


def test_a_window_that_is_not_kept_is_noticed(oracle: ModuleType, tmp_path: Path, check: Callable[..., None]) -> None:
    """It reaches further than the prompt that is traced."""
    folder = oracle.tiny_model("mistral", 0, tmp_path / "mistral", sliding_window=40)
    model = load_model(EngineConfig(model=str(folder), device="cpu"))
    assert len(model.rehearsals[0].token_ids) > 40
    check(model=model)
    with pytest.raises(UnservableModel, match="are off by"):
        check(lambda layers, *rest: TorchAttention([replace(layer, window=None) for layer in layers], *rest), model)


def test_a_step_that_fails_is_a_reason(check: Callable[..., None]) -> None:
    class ServesOne(TorchAttention):
        def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
            if len(spans) > 1:
                raise IndexError("one sequence is enough\nfor anyone")
            super().begin(spans)

    with pytest.raises(UnservableModel, match=r"of 3 sequences fails: IndexError: one sequence is enough$"):
        check(ServesOne)


def test_a_model_that_counts_positions_by_itself_is_noticed(loaded: LoadedModel, check: Callable[..., None]) -> None:
    """One plain pass cannot tell: there, the row of a token is its position."""

    def bias(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.3 * torch.arange(output.shape[1])[None, :, None]

    def plain(ids: torch.Tensor, rows: torch.Tensor, prompt: int = 0) -> torch.Tensor:
        with torch.inference_mode():
            loaded.attention.layers.clear()
            return forward_logits(loaded.model, ids, rows)

    loaded.model.get_input_embeddings().register_forward_hook(bias)
    prompt = loaded.trace.token_ids
    trace = replace(loaded.trace, logits=plain(prompt, torch.arange(len(prompt))))
    with pytest.raises(UnservableModel, match="with the paged KV cache, in chunks are off by"):
        check(model=replace(loaded, trace=trace, rehearsals=rehearsals(trace, prompt, plain)))


@pytest.mark.parametrize(
    ("limits", "num_pages", "most"),
    [
        (WIDE, NUM_PAGES, 3),
        (Limits(rows=5, spans=8, positions=256), NUM_PAGES, 3),
        (Limits(rows=64, spans=1, positions=256), NUM_PAGES, 1),
        (Limits(rows=1, spans=2, positions=256), NUM_PAGES, 1),
        (WIDE, 6, 2),  # one is cut off
        (WIDE, 3, 1),
    ],
)
def test_the_check_keeps_to_the_limits(
    loaded: LoadedModel, make_runner: Callable[..., ModelRunner], limits: Limits, num_pages: int, most: int
) -> None:
    runner = make_runner(NotesAll, num_pages)
    StartCheck(loaded.rehearsals, limits, num_pages, PAGE_SIZE).run(runner)
    assert isinstance(runner._backend, NotesAll)
    steps = runner._backend.steps
    assert max(len(spans) for spans in steps) == most
    assert max(sum(span.rows for span in spans) for spans in steps) <= limits.rows
    pages = {page for spans in steps for span in spans for page in span.pages}
    assert pages <= set(range(num_pages))


class NotesAll(TorchAttention):
    def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
        super().begin(spans, capacity=capacity)
        self.steps = [*getattr(self, "steps", ()), list(spans)]


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
    runner = make_runner(Notes, FEW_PAGES)
    run_largest_step(runner, limits, FEW_PAGES, PAGE_SIZE)
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
        run_largest_step(make_runner(RunsOut), Limits(20, 5, 100), FEW_PAGES, PAGE_SIZE)
