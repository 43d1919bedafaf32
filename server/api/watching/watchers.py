"""Where the records of one process's requests go: its access log and its traces, or nowhere."""

import asyncio
import time
from collections.abc import Callable

from ..http.refusals import Refused
from .access_log import FORMS, Line, line_of, line_of_refused
from .audit import AuditLog
from .lines import LineWriter
from .record import RequestRecord
from .traces import Traces, open_traces
from .watch import Ended

STANDARD_OUTPUT = 1  # the descriptor


class AccessLog:
    """The access log on one descriptor. form: of its lines."""

    def __init__(self, form: Callable[[Line], bytes], lines: LineWriter) -> None:
        self._form = form
        self.lines = lines

    def ended(self, record: RequestRecord) -> None:
        """Write the line of a request."""
        self.lines.put(self._form(line_of(record)))

    def refused(self, refused: Refused, request_id: str) -> None:
        """Write the line of a request that no application has seen."""
        self.lines.put(self._form(line_of_refused(refused, request_id, time.time())))


class Watchers:
    """Who is told of requests. Without a log and traces, nobody is, and nothing is noted.

    audit: of changes, where one is kept.
    """

    def __init__(self, log: AccessLog | None = None, traces: Traces | None = None) -> None:
        self._log = log
        self._traces = traces
        self.audit: AuditLog | None = None  # set by make_services()

    @property
    def ended(self) -> list[Ended]:
        """Return whom to tell of a request that has ended; traces first, whose number is in the log."""
        traced: list[Ended] = [] if self._traces is None else [self._traces]
        return traced if self._log is None else [*traced, self._log.ended]

    def refused(self, refused: Refused, request_id: str) -> None:
        """Tell of a request that no application has seen, if it was told why."""
        if self._log is not None and refused.status is not None and refused.request_id is None:
            self._log.refused(refused, request_id)

    async def close(self) -> None:
        """Write and send what waits."""
        if self.audit is not None:
            self.audit.close()
        if self._log is not None:
            await self._log.lines.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)


def open_watchers(form: str, endpoint: str | None, version: str, number: int) -> Watchers:
    """Return who is told of requests. form: of the access log, or `off`. endpoint: of traces. number: the process's.

    Raises MissingPackage.
    """
    traces = None if endpoint is None else open_traces(endpoint, version, number)
    if form == "off":
        return Watchers(None, traces)
    return Watchers(AccessLog(FORMS[form], LineWriter(STANDARD_OUTPUT)), traces)
