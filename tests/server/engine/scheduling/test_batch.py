"""A step's chunks: which rows reach the head, and the order of adapters."""

from collections.abc import Callable

from peftserve.server.engine.scheduling.batch import Batch, Chunk
from peftserve.server.engine.scheduling.sequence import Lease, Sequence

MakeSequence = Callable[..., Sequence]


def test_spans_of_one_adapter_are_neighbours(make_sequence: MakeSequence) -> None:
    chunks = []
    for seat, slot in enumerate((2, 1, 2, 0)):
        sequence = make_sequence()
        sequence.lease, sequence.seat = Lease(("d",), (slot,), (1.0,)), seat
        chunks.append(Chunk(sequence, seat, 1 + seat, samples=True))
    batch = Batch.by_adapter(chunks, chunks[1:2], [chunks[1].sequence])
    assert [chunk.sequence.slots for chunk in batch.chunks] == [(0,), (1,), (2,), (2,)]
    assert batch.lineup.seats.tolist() == [3, 1, 0, 2]
    assert batch.ends.tolist() == [7, 3, 1, 5]
    assert [batch.lineup.places[chunk.sequence] for chunk in batch.chunks] == [0, 1, 2, 3]
    assert (batch.num_tokens, batch.only_decodes) == (10, False)


def test_rows_that_reach_the_head(make_sequence: MakeSequence) -> None:
    plain, scored = make_sequence([1] * 6), make_sequence([1] * 6, prompt_logprobs=0)
    chunks = [Chunk(s, start, 3, start == 3) for s in (plain, scored) for start in (0, 3)]
    assert [chunk.num_logit_rows for chunk in chunks] == [0, 1, 3, 3]
    assert Chunk(scored, 6, 1, samples=True).num_logit_rows == 1


def test_nothing_is_no_batch() -> None:
    assert not Batch()
    assert Batch().num_tokens == 0
