"""Sequences that wait too long are found once; those that begin, or end, never."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.engine.scheduling.sequence import Sequence
from peftserve.server.engine.scheduling.start_limits import LEAST_COMPACTED, StartLimits

MakeSequence = Callable[..., Sequence]


@settings(max_examples=60, deadline=None)
@given(timeouts=st.lists(st.one_of(st.none(), st.floats(0, 10)), max_size=80), data=st.data())
def test_each_that_waits_past_its_time_is_found_once(
    make_sequence: MakeSequence, timeouts: list[float | None], data: st.DataObject
) -> None:
    limits = StartLimits()
    sequences = [make_sequence(queue_timeout=timeout) for timeout in timeouts]
    for sequence in sequences:
        limits.add(sequence)
    for sequence in sequences:
        fate = data.draw(st.sampled_from(["waits", "begins", "ends"]))
        sequence.queue_seconds = 1.0 if fate == "begins" else None
        sequence.is_over = fate == "ends"
    found: list[Sequence] = []
    start = max((sequence.arrived for sequence in sequences), default=0.0)
    for moment in sorted(data.draw(st.lists(st.floats(0, 12), min_size=1, max_size=5))):
        found += limits.take_expired(start + moment)
        due = [s for s in sequences if s.latest_start <= start + moment and not s.has_begun and not s.is_over]
        assert {s.request_id for s in found} == {s.request_id for s in due}
        assert len(found) == len(due)


def test_what_has_begun_is_not_kept_until_its_time(make_sequence: MakeSequence) -> None:
    limits = StartLimits()
    for _ in range(20 * LEAST_COMPACTED):
        sequence = make_sequence(queue_timeout=1e9)
        limits.add(sequence)
        sequence.queue_seconds = 0.0
    assert len(limits._due) <= LEAST_COMPACTED + 1
