"""Checks of what clients want answers held to, on threads of their own, each for a time of its own.

How long a check takes cannot be told from a form's length. A call of the library cannot be stopped, so that work asks
between its calls whether its time is over. Knows no form, and needs no tokenizer.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from llguidance import LLMatcher, LLParserLimits

from ...deep_threads import DeepThreads
from ..http.errors import RETRY_SECONDS, ApiError

SECONDS = 10.0  # in which work that has begun is answered
BEGINNING = 5.0  # of them, in which it may begin another call: who waits for its end has long been answered otherwise
WAITING = 10.0  # for a thread
LIMITS = LLParserLimits(  # as the engine's are: what it would refuse is refused here
    initial_lexer_fuel=2_000_000, max_grammar_size=250_000, max_lexer_states=50_000, verbose_errors=False
)

T = TypeVar("T")
IsOver = Callable[[], bool]
"""Returns whether work has no time for another call."""

_threads = DeepThreads(2, thread_name_prefix="forms")  # where a slow one holds up others of its kind only


async def run_check(work: Callable[[IsOver], T]) -> T:
    """Return what `work` returns, whose time begins when a thread takes it.

    Raises TimeoutError where it takes over `SECONDS`, ApiError 429 where no thread was free, and what `work` raises.
    """
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def begin() -> T:
        last = monotonic() + BEGINNING
        loop.call_soon_threadsafe(begun.set)
        return work(lambda: monotonic() >= last)

    queued = _threads.submit(begin)
    try:
        await asyncio.wait_for(begun.wait(), WAITING)
    except TimeoutError:
        raise ApiError(
            429,
            "The server has too many forms of answers to compile; try again later.",
            code="queue_full",
            headers={"Retry-After": str(RETRY_SECONDS)},
        ) from None
    finally:
        if not begun.is_set():
            queued.cancel()  # no one waits for it any more
    return await asyncio.wait_for(asyncio.wrap_future(queued), SECONDS)


def fault_of(grammar: str) -> str:
    """Return what is wrong with a grammar, "" if nothing is."""
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    return messages[0].strip()[:500] if is_error else ""
