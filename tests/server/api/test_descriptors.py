import resource

import pytest

from peftserve.server.api import descriptors
from peftserve.server.api.descriptors import OF_EACH, OTHERS, room_for

NO_LIMIT = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch):
    """The process's limits on open files, which the test may set: [soft, hard]."""
    limits = [1024, 4096]
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda kind, new: limits.__setitem__(slice(None), new))
    return limits


def test_the_soft_limit_is_raised_as_far_as_is_needed(limits):
    assert room_for(100) == 100
    assert limits == [1024, 4096]
    assert room_for(1000) == 1000
    assert limits == [OTHERS + OF_EACH * 1000, 4096]


def test_where_the_system_does_not_let_us_there_are_fewer(limits, caplog):
    assert room_for(4096) == (4096 - OTHERS) // OF_EACH
    assert limits == [4096, 4096]
    assert "open files (4096)" in caplog.text


def test_no_limit(limits):
    assert room_for(0) == 0
    assert limits == [4096, 4096]
    limits[:] = [1024, NO_LIMIT]
    assert room_for(5000) == 5000
    assert limits == [OTHERS + OF_EACH * 5000, NO_LIMIT]
    limits[:] = [NO_LIMIT, NO_LIMIT]
    assert room_for(1 << 30) == 1 << 30
