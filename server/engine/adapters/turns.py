"""Threads that take work by turns of those who ask for it, so that nobody's work waits behind all of another's."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Work(NamedTuple):
    task: Callable[[], Any]
    future: Future[Any]

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.task())
        except BaseException as error:
            self.future.set_exception(error)


class Turns:
    """Round robin over askers, of each of whom at most one task runs at once, in the order that it asked.

    num_threads: tasks at once, each of another asker. initializer: called on each thread first.
    """

    def __init__(self, num_threads: int, name: str, initializer: Callable[[], None]) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=initializer)
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Work]] = OrderedDict()  # by asker, whose turn comes first at the front
        self._running: set[str] = set()

    def submit(self, asker: str, task: Callable[[], T]) -> Future[T]:
        """Queue a task of somebody's. Returns its future."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(asker, deque()).append(_Work(task, future))
        self._threads.submit(self._work)
        return future

    def close(self) -> None:
        """Cancel what waits, and wait for what runs."""
        with self._lock:
            for queue in self._waiting.values():
                for work in queue:
                    work.future.cancel()
            self._waiting.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _work(self) -> None:
        """Run tasks until none is left but of askers of whom another thread runs one, and then goes on."""
        while (taken := self._take()) is not None:
            asker, work = taken
            work.run()
            with self._lock:
                self._running.discard(asker)

    def _take(self) -> tuple[str, _Work] | None:
        with self._lock:
            asker = next((asker for asker in self._waiting if asker not in self._running), None)
            if asker is None:
                return None
            work = self._waiting[asker].popleft()
            self._running.add(asker)
            if self._waiting[asker]:
                self._waiting.move_to_end(asker)
            else:
                del self._waiting[asker]
            return asker, work
