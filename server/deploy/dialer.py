"""Keeps one connection from a replica's engine to the process that deals out the sequences.

A thread of its own dials, says hello, hands the connection to the engine, and waits until it ends, to dial again. Knows
sockets; does not know what engines say.
"""

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from .hello import Hello, say_hello

CONNECT_SECONDS = 10.0
PAUSE = 0.5  # seconds between two tries
_ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR


@dataclass(frozen=True)
class Target:
    """Where sequences are dealt out, and the secret by which it knows its own."""

    host: str
    port: int
    secret: str


class Dialer:
    """Dials for one engine. admit: hands a connection to the engine, which then has a copy of it. Raises OSError."""

    def __init__(self, name: str, admit: Callable[[socket.socket], None]) -> None:
        self._name = name
        self._admit = admit
        self._target: Target | None = None  # set by dial()
        self._end: socket.socket | None = None  # while there is a connection
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dialer", daemon=True)

    def dial(self, target: Target) -> None:
        """Keep a connection to `target` from now on, and none to the one before."""
        with self._lock:
            is_other, self._target = target != self._target, target
            if is_other:
                self._hang_up()
        self._wake.set()
        if not self._thread.is_alive() and not self._closed:
            self._thread.start()

    def take_leave(self, patience: float) -> None:
        """Ask for nothing more, and wait for what the engine runs, at most `patience` seconds."""
        if (target := self._target) is None:
            return
        with contextlib.suppress(OSError), socket.create_connection((target.host, target.port), CONNECT_SECONDS) as end:
            say_hello(end, Hello(target.secret, self._name, leaving=True))
            end.settimeout(patience)
            end.recv(1)

    def close(self) -> None:
        """End the connection, and dial no more: the engine has ended. Idempotent."""
        with self._lock:
            self._closed = True
            self._hang_up()
        self._wake.set()

    def _hang_up(self) -> None:
        """End the connection on both sides, also for the engine, which has a copy."""
        if self._end is not None:
            with contextlib.suppress(OSError):  # it has ended
                self._end.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                self._connect_once()
            self._wake.wait(PAUSE)
            self._wake.clear()

    def _connect_once(self) -> None:
        """Connect, and return when the connection has ended. Raises OSError."""
        target = self._target
        assert target is not None
        with socket.create_connection((target.host, target.port), CONNECT_SECONDS) as end:
            say_hello(end, Hello(target.secret, self._name))
            end.settimeout(None)
            with self._lock:
                if self._closed or target != self._target:
                    return
                self._admit(end)
                self._end = end
            try:
                _until_ended(end)
            finally:
                with self._lock:
                    self._end = None
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)


def _until_ended(end: socket.socket) -> None:
    """Wait until either side has ended a connection, of which another process reads."""
    poller = select.poll()
    poller.register(end, _ENDED)
    poller.poll()
