"""Threads for work that calls itself as often as a text of a client's is deep. Knows nothing of the work."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

STACK = 1 << 29  # bytes, of which memory is taken only for what is used


class DeepThreads(ThreadPoolExecutor):
    """Threads with stacks of `STACK` bytes: a library without limits of its own ends the process behind a stack."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        usual = threading.stack_size(STACK)  # of threads from here on: this may start one
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            threading.stack_size(usual)
