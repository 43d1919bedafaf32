"""Events: one who listens and fails keeps nobody else from hearing."""

import logging

import pytest

from peftserve.adapters.events import Event, EventLog


async def test_a_listener_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Event) -> None:
        raise OSError("its file is gone")

    log, heard = EventLog(), []
    log.add_listener(fail)
    log.add_listener(heard.append)
    with log.watch() as watcher:
        log.tell("default.changed", name="sql")
        assert await watcher.read(60) == heard
    assert [event.name for event in heard] == ["sql"]
    (record,) = caplog.records
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)
