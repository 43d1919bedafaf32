"""What is kept of sequences that decode, against looking at each of them."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.engine.scheduling.decodes import Decodes
from peftserve.server.engine.scheduling.sequence import UNKNOWN, Lease, Sequence

MakeSequence = Callable[..., Sequence]
PAGE = 4
MOST = 6


@pytest.fixture(scope="session")
def decoding(make_sequence: MakeSequence) -> Callable[[int, int, int], Sequence]:
    """Makes a sequence of so many tokens, the last of which is to be run, on one adapter and with so many to come."""

    def make(length: int, slot: int, to_come: int) -> Sequence:
        sequence = make_sequence(prompt=[1] * length, adapters=[str(slot)] * (slot > 0), max_tokens=to_come)
        sequence.lease = Lease(("d",), (slot,), (1.0,)) if slot else None
        sequence.num_computed = length - 1
        sequence.pages = list(range(-(-(length - 1) // PAGE)))
        return sequence

    return make


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_it_is_as_if_each_was_looked_at(decoding: Callable[..., Sequence], data: st.DataObject) -> None:
    decodes, known = Decodes(MOST, PAGE), list[Sequence]()
    for _ in range(data.draw(st.integers(1, 12))):
        if len(known) < MOST and data.draw(st.booleans()):
            known.append(decoding(*(data.draw(st.integers(*bounds)) for bounds in ((2, 9), (0, 3), (1, 9)))))
            decodes.add(known[-1])
        if known and data.draw(st.integers(0, 3)) == 0:
            decodes.remove(known.pop(data.draw(st.integers(0, len(known) - 1))))
        due = [s for s in known if len(s.tokens) > len(s.pages) * PAGE]
        assert decodes.turn_pages() == due
        for sequence in due:
            sequence.pages.append(0)
        decodes.check_integrity()
        check_step(decodes, known)
        known = [s for s in known if not s.is_full]
        assert len(decodes) == len(known)
        assert all(s in decodes for s in known)


def check_step(decodes: Decodes, known: list[Sequence]) -> None:
    batch = decodes.batch()
    slots = [chunk.sequence.slots for chunk in batch.chunks]
    assert slots == sorted(slots)
    assert set(batch.lineup.sequences) == set(known)
    assert all(
        (chunk.start, chunk.num_tokens, chunk.samples) == (len(chunk.sequence.tokens) - 1, 1, True)
        for chunk in batch.chunks
    )
    filling = {s for s in known if len(s.tokens) % PAGE == 0}
    assert set(decodes.launched()) == filling
    for sequence in known:
        assert sequence.tokens[-1] == UNKNOWN
        assert sequence.num_remaining == 1
        sequence.tokens[-1] = 1


def test_a_batch_stays_as_it_was_scheduled(decoding: Callable[..., Sequence]) -> None:
    decodes = Decodes(MOST, PAGE)
    first, second = decoding(3, 1, 9), decoding(5, 0, 9)
    decodes.add(first)
    batch = decodes.batch()
    decodes.add(second)
    decodes.launched()
    assert batch.ends.tolist() == [3]
    assert [chunk.sequence for chunk in batch.chunks] == [first]
