import resource

import pytest

from peftserve.server.api.http.server import FILES_PER_CONNECTION, OTHER_FILES, raise_file_limit

NO_LIMIT = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch):
    """The process's limits on open files, which the test may set: [soft, hard]."""
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.__setitem__(slice(None), new))
    return limits


def test_the_soft_limit_is_raised_as_far_as_is_needed(limits):
    assert raise_file_limit(100) == 100
    assert limits == [1024, 4096]
    assert raise_file_limit(1000) == 1000
    assert limits == [OTHER_FILES + FILES_PER_CONNECTION * 1000, 4096]


def test_where_the_system_does_not_let_us_there_are_fewer(limits, caplog):
    assert raise_file_limit(4096) == (4096 - OTHER_FILES) // FILES_PER_CONNECTION
    assert limits == [4096, 4096]
    assert "open files (4096)" in caplog.text


def test_as_many_as_the_system_lets_us(limits):
    assert raise_file_limit(0) == 0
    assert limits == [4096, 4096]
    limits[:] = [1024, NO_LIMIT]
    assert raise_file_limit(5000) == 5000
    assert limits == [OTHER_FILES + FILES_PER_CONNECTION * 5000, NO_LIMIT]
    limits[:] = [NO_LIMIT, NO_LIMIT]
    assert raise_file_limit(1 << 30) == 1 << 30
