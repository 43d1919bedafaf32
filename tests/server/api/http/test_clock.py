import pytest

from peftserve.server.api.http.clock import MIN_RATE, ConnectionClock, Doing, Overdue, Progress, Timeouts

TIMEOUTS = Timeouts(headers=10, body=60, idle=75, write=20)


UPTIME = 10_000_000.0  # seconds: an event loop counts from when its machine was started


def looks(clock, doing, seconds, *, begin=0, step=1.0, requests=1, received=lambda t: 0, taken=lambda t: 0, unsent=0):
    """Look each `step` seconds; returns (time, what is overdue) of the first look that says so, or None."""
    for i in range(int(seconds / step) + 1):
        now = begin + i * step
        overdue = clock.look(now, doing, requests, received=received(now), taken=taken(now), unsent=unsent)
        if overdue is not None:
            return now, overdue
    return None


@pytest.mark.parametrize(
    ("doing", "when", "what"),
    [
        (Doing.HEAD, 11, Overdue.HEAD),
        (Doing.NEXT, 76, Overdue.NEXT),
        (Doing.REST, 61, Overdue.BODY),
        (Doing.BODY, 61, Overdue.BODY),
    ],
)
def test_what_lasts_too_long_is_overdue(doing, when, what):
    assert looks(ConnectionClock(TIMEOUTS), doing, 1000) == (when, what)
    assert looks(ConnectionClock(Timeouts(0, 0, 0, 0)), doing, 100_000, step=10) is None


def test_who_owes_nothing_is_never_overdue():
    assert looks(ConnectionClock(TIMEOUTS), Doing.NOTHING, 100_000, step=10) is None


def test_another_request_has_its_own_time():
    clock = ConnectionClock(TIMEOUTS)
    for requests in range(100):
        assert looks(clock, Doing.HEAD, 9, begin=requests * 10, requests=requests) is None


def test_what_a_body_brings_extends_its_time():
    assert looks(ConnectionClock(TIMEOUTS), Doing.BODY, 10_000, received=lambda t: int(t * MIN_RATE)) is None
    pauses = lambda t: (t // 59) * MIN_RATE * 70  # noqa: E731
    assert looks(ConnectionClock(TIMEOUTS), Doing.BODY, 10_000, received=pauses) is None


def test_a_body_that_trickles_is_overdue_also_when_it_began_quickly():
    assert looks(ConnectionClock(TIMEOUTS), Doing.BODY, 10_000, received=lambda t: t // 59) == (240, Overdue.BODY)
    late = lambda t: (100 << 20) + t // 59 if t else 0  # noqa: E731
    assert looks(ConnectionClock(TIMEOUTS), Doing.BODY, 10_000, received=late) == (480, Overdue.BODY)


def test_who_takes_nothing_of_an_answer_is_overdue_whatever_else_goes_on():
    for doing in set(Doing) - {Doing.PARTING}:
        assert looks(ConnectionClock(Timeouts(0, 0, 0, 20)), doing, 1000, unsent=5) == (21, Overdue.WRITE)
    assert looks(ConnectionClock(TIMEOUTS), Doing.NOTHING, 1000, unsent=5, taken=lambda t: t * MIN_RATE) is None
    assert looks(ConnectionClock(TIMEOUTS), Doing.NOTHING, 1000, unsent=0) is None


def test_an_answer_that_is_taken_begins_the_time_anew():
    clock = ConnectionClock(TIMEOUTS)
    for i in range(20):
        assert looks(clock, Doing.NOTHING, 19, begin=20 * i, unsent=5) is None
        assert looks(clock, Doing.NOTHING, 0, begin=20 * i + 19.5, unsent=0) is None


def test_a_restart_forgets():
    progress = Progress(10)
    progress.restart(5, 100.0)
    assert not progress.stalls(5, 110.0)
    assert progress.stalls(5, 110.1)


def test_looks_are_as_frequent_as_the_shortest_timeout_needs():
    assert Timeouts().pause == 1.0
    assert Timeouts(headers=0, body=2, idle=0.4, write=0).pause == pytest.approx(0.1)
    assert Timeouts(0, 0, 0, 0).pause == 1.0


@pytest.mark.parametrize("begin", [0.0, UPTIME])
def test_the_first_look_at_what_is_unsent_begins_its_time(begin):
    clock = ConnectionClock(TIMEOUTS)
    taken = lambda now: 5000 + int(now - begin) * MIN_RATE  # noqa: E731
    assert looks(clock, Doing.NOTHING, 1000, begin=begin, unsent=9, taken=taken) is None
    silent = looks(ConnectionClock(TIMEOUTS), Doing.NOTHING, 1000, begin=begin, unsent=9, taken=lambda _: 5000)
    assert silent == (begin + 21, Overdue.WRITE)
