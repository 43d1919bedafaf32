import pytest

from peftserve.server.api.engine.pulse import BUSY_TIMES, LOOK_SECONDS, Pulse, Vitals


class _Time:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return _Time()


def _look_for(pulse, clock, seconds, *, computing=False, stopped=False, works=True):
    for _ in range(round(seconds / LOOK_SECONDS)):
        clock.now += LOOK_SECONDS
        pulse.look(Vitals(clock.now if computing else 5.0, stopped), works=works)


def _new(clock):
    pulse = Pulse(clock)
    pulse.begin()
    pulse.look(Vitals(5.0, False), works=True)
    return pulse


def test_silence_grows_until_a_message_comes(clock):
    pulse = _new(clock)
    _look_for(pulse, clock, 4)
    assert (pulse.silence, pulse.age) == (4, 4)
    assert not pulse.is_lost(4, loading=False)
    _look_for(pulse, clock, 1)
    assert pulse.is_lost(4, loading=False)
    assert not pulse.is_lost(0, loading=False)
    pulse.heard()
    assert (pulse.silence, pulse.age, pulse.is_lost(4, loading=False)) == (0, 0, False)


def test_a_step_that_computes_is_no_silence_but_one_that_never_ends_is_lost(clock):
    pulse = _new(clock)
    _look_for(pulse, clock, 4 * BUSY_TIMES, computing=True)
    assert (pulse.silence, pulse.age, pulse.is_lost(4, loading=False)) == (0, 40, False)
    _look_for(pulse, clock, LOOK_SECONDS, computing=True)
    assert pulse.is_lost(4, loading=False)
    assert not pulse.is_lost(4, loading=True)


def test_processor_time_of_one_that_only_waits_for_a_device_is_no_sign(clock):
    pulse = _new(clock)
    _look_for(pulse, clock, 5, computing=True, works=False)
    assert pulse.silence == 5


def test_a_model_loads_for_as_long_as_it_takes_unless_it_is_stopped(clock):
    pulse = _new(clock)
    _look_for(pulse, clock, 4 * BUSY_TIMES)
    assert not pulse.is_lost(4, loading=True)
    _look_for(pulse, clock, LOOK_SECONDS, stopped=True)
    assert pulse.is_lost(4, loading=True)
    pulse.begin()
    _look_for(pulse, clock, 4, stopped=True)
    assert not pulse.is_lost(4, loading=True)
    _look_for(pulse, clock, LOOK_SECONDS, stopped=True)
    assert pulse.is_lost(4, loading=True)


def test_time_in_which_nobody_looked_does_not_count(clock):
    """As when this process has itself been stopped: what came meanwhile is not read yet."""
    pulse = _new(clock)
    clock.now += 3600
    pulse.look(None, works=True)
    assert pulse.silence == 2 * LOOK_SECONDS
