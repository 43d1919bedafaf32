"""Rows of a step pooled chunk by chunk."""

import pytest
import torch

from peftserve.server.engine.model.pooling import POOLS, ends_pooling, is_pooled, readers_of
from peftserve.server.engine.scheduling.batch import Batch, Chunk
from peftserve.server.engine.scheduling.sequence import Sequence
from peftserve.server.wire.messages import Pooling, SamplingParams


def sequence(length: int, pooling: Pooling | None, num_virtual: int = 0) -> Sequence:
    made = Sequence("one", list(range(length)), SamplingParams(max_tokens=0), (), "", 0, frozenset(), pooling=pooling)
    made.num_virtual = num_virtual
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(POOLS))
def test_chunks_come_to_what_the_whole_does(kind: str, dtype: torch.dtype) -> None:
    rows = torch.randn(23, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    state = None
    for part in rows.split([1, 5, 17]):
        state = POOLS[kind](state, part, len(rows))  # type: ignore[index]
    assert state is not None
    assert state.dtype == torch.float32
    expected = rows.float().mean(0) if kind == "mean" else rows[-1].float()
    torch.testing.assert_close(state, expected)


def test_each_layer_gets_the_rows_that_ask_for_it() -> None:
    first, second = sequence(3, Pooling("mean", 1)), sequence(4, Pooling("last"), num_virtual=2)
    plain, later = sequence(2, None), sequence(9, Pooling("mean", 1))
    chunks = [
        Chunk(plain, 0, 2, False),
        Chunk(first, 0, 3, False),
        Chunk(second, 2, 4, False),
        Chunk(later, 0, 5, False),
    ]
    assert list(map(is_pooled, chunks)) == [False, True, True, True]
    assert list(map(ends_pooling, chunks)) == [False, True, True, False]
    readers = readers_of(Batch(chunks), [0, 2, 5, 9, 14])
    assert readers.keys() == {1, None}
    states = torch.arange(14.0)[:, None]
    readers[1](states)
    readers[None](states)
    assert [made.pooled and made.pooled.item() for made in (plain, first, second)] == [None, 3.0, 8.0]
    readers_of(Batch([Chunk(later, 5, 4, False)]), [0, 4])[1](torch.full((4, 1), 20.0))
    assert later.pooled is not None
    assert later.pooled.item() == pytest.approx((9 + 10 + 11 + 12 + 13 + 4 * 20) / 9)


def test_a_prompt_that_begins_again_is_pooled_anew() -> None:
    again = sequence(2, Pooling())
    for value in (5.0, 7.0):
        readers_of(Batch([Chunk(again, 0, 2, False)]), [0, 2])[None](torch.full((2, 1), value))
    assert again.pooled is not None
    assert again.pooled.item() == 7.0


def test_generated_tokens_are_not_pooled() -> None:
    resumed = sequence(2, Pooling())
    resumed.tokens += [9, 9, 9]
    readers_of(Batch([Chunk(resumed, 0, 5, True)]), [0, 5])[None](torch.tensor([[1.0], [3.0], [9.0], [9.0], [9.0]]))
    assert resumed.pooled is not None
    assert resumed.pooled.item() == 2.0
    assert readers_of(Batch([Chunk(resumed, 2, 3, True)]), [0, 3]) == {}
    assert readers_of(Batch(), [0]) == {}
