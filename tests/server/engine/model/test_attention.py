"""Paged attention against the textbook, over random pages, chunks and mixed batches."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.layout import AttentionLayer
from peftserve.server.engine.model.attention import PagedAttention
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.kv_cache import KVCache
from peftserve.server.engine.model.runner import ModelRunner
from peftserve.server.engine.scheduling.batch import Batch, Chunk
from peftserve.server.engine.scheduling.sequence import Sequence

MakeSequence = Callable[..., Sequence]
NUM_PAGES = 64

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scaling": 0.7},
    "window": {"sliding_window": 5},
    "window of one": {"sliding_window": 1},
    "window longer than all": {"sliding_window": 1000},
    "softcap": {"softcap": 0.8},
    "softcap and window": {"softcap": 0.8, "sliding_window": 7, "scaling": 1.5},
    "sinks": {"sinks": True},
    "sinks and window": {"sinks": True, "sliding_window": 3},
}


def make_runner(toy: SimpleNamespace, model: Any, page_size: int, poison: float = float("nan")) -> ModelRunner:
    """poison: what unwritten pages hold, as left there by others."""
    layer = toy.layer(model.q.shape[2], model.k.shape[2])
    cache = KVCache({0: layer}, NUM_PAGES, page_size, torch.float32, torch.device("cpu"))
    cache.keys[0].fill_(poison)
    cache.values[0].fill_(poison)
    return model.connected(cache, toy.NoHooks(), toy.NoBackend())  # type: ignore[no-any-return]


def random_batches(chance: random.Random, sequences: list[Sequence]) -> list[Batch]:
    """Chunks of all sequences in random steps; what ran once is decoded or prefilled beside what has not begun."""
    batches = []
    while any(sequence.num_remaining for sequence in sequences):
        spans = []
        for sequence in chance.sample(sequences, len(sequences)):
            if sequence.num_remaining and chance.random() < 0.7:
                count = chance.choice([1, 1, 1, min(sequence.num_remaining, chance.randint(1, 25))])
                spans.append(Chunk(sequence, sequence.num_computed, count, samples=False))
                sequence.num_computed += count
        if spans:
            batches.append(Batch(spans))
    return batches


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=lambda pair: f"{pair[0]} on {pair[1]}")
@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_plain_attention_whatever_the_pages_and_chunks(
    toy: SimpleNamespace, make_sequence: MakeSequence, options: str, heads: tuple[int, int]
) -> None:
    chance = random.Random(f"{options}{heads}")
    for page_size in (1, 4, 16):
        model = toy.Model(*heads)
        model.options = dict(OPTIONS[options])
        if model.options.pop("sinks", False):
            model.options["s_aux"] = torch.linspace(-1, 2, heads[0])
        runner = make_runner(toy, model, page_size)
        free = chance.sample(range(NUM_PAGES), NUM_PAGES)
        lengths = [1, page_size, page_size + 1, chance.randint(2, 20), 20]
        sequences = []
        for length in lengths:
            tokens = [chance.randrange(toy.VOCAB) for _ in range(length)]
            pages = [free.pop() for _ in range(-(-length // page_size))]
            sequences.append(make_sequence(tokens, pages, prompt_logprobs=0))
        expected = {id(sequence): model.expected(sequence.tokens) for sequence in sequences}
        for batch in random_batches(chance, sequences):
            result = runner.run(batch)
            for span, offset in zip(batch.chunks, result.offsets, strict=False):
                got = result.logits[offset : offset + span.num_tokens]
                wanted = expected[id(span.sequence)][span.start : span.end]
                torch.testing.assert_close(got, wanted.float(), atol=1e-5, rtol=1e-5)


def test_decodes_of_very_different_lengths_run_together(toy: SimpleNamespace, make_sequence: MakeSequence) -> None:
    model = toy.Model()
    runner = make_runner(toy, model, 2)
    sequences, next_page = [], 0
    for length in (1, 2, 9, 31, 70):
        pages = list(range(next_page, next_page + -(-length // 2)))
        next_page += len(pages)
        sequences.append(make_sequence([i % toy.VOCAB for i in range(length)], pages))
    prefills = [Chunk(s, 0, len(s.tokens) - 1, samples=False) for s in sequences if len(s.tokens) > 1]
    runner.run(Batch(prefills))
    decodes = [Chunk(s, len(s.tokens) - 1, 1, samples=True) for s in sequences]
    result = runner.run(Batch(decodes)).logits
    expected = torch.stack([model.expected(s.tokens)[-1] for s in sequences])
    torch.testing.assert_close(result, expected.float(), atol=1e-5, rtol=1e-5)


def test_what_one_sequence_overflowed_never_reaches_another(toy: SimpleNamespace, make_sequence: MakeSequence) -> None:
    """Its pages go to others, who read them beyond their own tokens, masked: but nothing times NaN is NaN."""
    model = toy.Model()
    runner = make_runner(toy, model, 4, poison=0.0)
    model.k[7], model.v[7] = float("inf"), float("nan")
    runner.run(Batch([Chunk(make_sequence([7] * 16, [0, 1, 2, 3]), 0, 16, samples=False)]))
    sequences = [make_sequence([1, 2, 3, 4, 5, 6], [2, 1]), make_sequence([9], [3])]
    runner.run(Batch([Chunk(sequences[0], 0, 5, samples=False)]))
    result = runner.run(Batch([Chunk(sequences[0], 5, 1, samples=True), Chunk(sequences[1], 0, 1, samples=True)]))
    expected = torch.stack([model.expected(s.tokens)[-1] for s in sequences])
    torch.testing.assert_close(result.logits, expected.float(), atol=1e-5, rtol=1e-5)


def test_sequences_of_one_step_may_share_a_page_that_is_written_in_it(
    toy: SimpleNamespace, make_sequence: MakeSequence
) -> None:
    model = toy.Model()
    runner = make_runner(toy, model, 4)
    first, second = make_sequence([1, 2, 3, 4, 5], [9, 8]), make_sequence([1, 2, 3, 4, 6], [9, 7])
    spans = [Chunk(second, 4, 1, samples=True), Chunk(first, 0, 5, samples=True)]
    result = runner.run(Batch(spans)).logits
    expected = torch.stack([model.expected(s.tokens)[-1] for s in (second, first)])
    torch.testing.assert_close(result, expected.float(), atol=1e-5, rtol=1e-5)


def test_without_a_cache_it_notes_the_shapes_of_layers(toy: SimpleNamespace) -> None:
    model = toy.Model(heads=6, kv_heads=3)
    ids = torch.tensor([[4, 5, 6]])
    out = model(ids, torch.arange(3)[None], False, torch.arange(3)).logits
    torch.testing.assert_close(out[0], model.expected([4, 5, 6]).float(), atol=1e-5, rtol=1e-5)
    assert model.attention.layers == {0: AttentionLayer(6, 3, 8, toy.VALUE_DIM, 8**-0.5)}


@pytest.mark.parametrize("name", ["position_bias", "head_mask"])
def test_attention_with_inputs_it_does_not_know_is_refused(toy: SimpleNamespace, name: str) -> None:
    model = toy.Model()
    q, k, v = (torch.zeros(1, count, 3, 8) for count in (4, 2, 2))
    with pytest.raises(UnservableModel, match=f"`{name}`"):
        model.attention(model.layer, q, k, v, None, **{name: torch.zeros(1)})


def test_layers_without_an_index_of_their_own_are_refused() -> None:
    attention, layer = PagedAttention(), torch.nn.Module()
    q, k, v = (torch.zeros(1, 2, 3, 4) for _ in range(3))
    with pytest.raises(UnservableModel, match="has no layer index"):
        attention(layer, q, k, v, None)


def test_calls_of_one_layer_in_a_pass_have_keys_of_their_own() -> None:
    """As in layers that attend twice, or that run again: told apart by their order in the pass."""
    attention, layers = PagedAttention(), [torch.nn.Module(), torch.nn.Module()]
    for layer in layers:
        layer.layer_idx = 3
    q, k, v = (torch.zeros(1, 2, 3, 4) for _ in range(3))
    for layer in (layers[0], layers[1], layers[0]):
        attention(layer, q, k, v, None)
    assert attention.repeated == {3: [3, -1, -2]}
    assert list(attention.layers) == [3, -1, -2]
    for _ in range(2):
        attention.begin()
        assert [attention._number(3) for _ in range(3)] == [3, -1, -2]
        assert attention._number(4) == 4
    attention.forget()
    assert not attention.layers
    assert not attention.repeated
