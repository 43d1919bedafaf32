"""Regular expressions that come with an adapter, run so that none can hold up the server.

PEFT reads them with `re`, whose search can take longer than the universe lasts. Here each is limited in length and
in counted repetitions, and all of one adapter share one limit of time and text. Matching lets other threads run. Names
without anything to match are compared as they are: a pattern for each module of a large model takes no time.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from typing import Protocol, TypeVar

import regex

from ..errors import InvalidAdapter

MAX_PATTERN_CHARS = 1 << 15
MAX_TOTAL_CHARS = 100_000  # of all expressions of one adapter, each counted once
MAX_PATTERNS = 4096
MAX_REPETITIONS = 1 << 16
MATCH_SECONDS = 0.25

_NAME = re.compile(r"\w+(?:\.\w+)*")  # no expression but for its dots, which stand for any character
_COUNT = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
# The limit on groups keeps the compiler's recursion far from the interpreter's.
_MAX_GROUPS = 100
_END = r"(.*\.)?({})$"  # what PEFT makes of a key that is compared with the end of a name
_MAX_QUANTIFIERS = 1000

_Found = TypeVar("_Found")


class Deadline:
    """The time and the text that all expressions of one adapter may take together.

    seconds: of compiling and matching, as this thread's processor counts them: what else is busy takes nothing of it.
        The longest operation that ended is not counted: garbage may have been collected within it, or a virtual
        machine stood still.
    """

    def __init__(self, seconds: float = MATCH_SECONDS, chars: int = MAX_TOTAL_CHARS) -> None:
        self._seconds = seconds
        self._chars = chars
        self._spent = 0.0  # on all operations
        self._longest = 0.0  # on one of them
        self._since: float | None = None  # when `running` was entered, within it
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError if there are none."""
        running = 0.0 if self._since is None else time.thread_time() - self._since
        left = self._seconds - (self._spent - self._longest) - running
        if left <= 0:
            raise TimeoutError
        return left

    @contextmanager
    def running(self, field: str) -> Iterator[None]:
        """Count what is done within. field: for the message. Raises InvalidAdapter when the time is up."""
        if self._since is not None:
            yield
            return
        self._since = time.thread_time()
        try:
            yield
        except TimeoutError:
            raise _invalid(field, "takes too long to match; use simpler expressions") from None
        finally:
            took = time.thread_time() - self._since
            self._spent += took
            self._longest = max(self._longest, took)
            self._since = None

    def within(self, match: Callable[[float], _Found]) -> _Found:
        """Call a match with the seconds that it may take, again where another clock than ours stopped it.

        Raises TimeoutError when the time is up.
        """
        while True:
            left = self.left()
            with suppress(TimeoutError):
                return match(left)

    def admit(self, texts: Iterable[str], field: str) -> None:
        """Raise InvalidAdapter if so many are too much, before any is compiled. Those that are count no more."""
        if sum(len(text) for text in texts if text not in self._compiled) > self._chars:
            raise _invalid(field, f"takes the adapter's expressions over {MAX_TOTAL_CHARS} characters together")

    def compiled(self, text: str, field: str) -> "regex.Pattern[str]":
        """Return the compiled expression, which is compiled and counted once. Raises InvalidAdapter."""
        if text not in self._compiled:
            self.admit([text], field)
            self._chars -= len(text)
            self._compiled[text] = _compile(text, field)
        return self._compiled[text]


class Pattern:
    """One expression. field: the field that it comes from, for messages."""

    def __init__(self, text: str, field: str, deadline: Deadline, *, template: str = "{}") -> None:
        """Compile the expression. template: what PEFT builds around the client's. Raises InvalidAdapter."""
        self._field = field
        self._deadline = deadline
        _check_size(text, field)
        with deadline.running(field):
            deadline.left()
            self._compiled = deadline.compiled(template.replace("{}", text), field)

    def fullmatch(self, name: str) -> bool:
        """Return whether the whole name matches. Raises InvalidAdapter when the time is up."""
        with self._deadline.running(self._field):
            found = self._deadline.within(lambda left: self._compiled.fullmatch(name, timeout=left, concurrent=True))
            return found is not None

    def match(self, name: str) -> "regex.Match[str] | None":
        """Match at the beginning of a name. Raises InvalidAdapter when the time is up."""
        with self._deadline.running(self._field):
            return self._deadline.within(lambda left: self._compiled.match(name, timeout=left, concurrent=True))


class EndPattern(Protocol):
    """What is matched with the end of a module's name, from its beginning or from behind a dot on."""

    def match(self, name: str) -> object:
        """Return something true if it matches."""


class _PlainEnd:
    """A name, whose dots stand for any character, as `(.*\\.)?(name)$` matches."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._last = text.rpartition(".")[2]

    def match(self, name: str) -> bool:
        if not name.endswith(self._last):
            return False
        start = len(name) - len(self._text)
        if start < 0 or (start and name[start - 1] != "."):
            return False
        return name.endswith(self._text) or all(
            own in (".", other) for own, other in zip(self._text, name[start:], strict=True)
        )


def pattern_keys(keys: Iterable[str], field: str, deadline: Deadline) -> list[tuple[str, EndPattern]]:
    """Compile the keys of rank_pattern or alpha_pattern, which PEFT matches with the end of a module's name.

    Raises InvalidAdapter.
    """
    texts = list(keys)
    if len(texts) > MAX_PATTERNS:
        raise _invalid(field, f"has {len(texts)} entries; the limit is {MAX_PATTERNS}")
    deadline.admit([_END.replace("{}", text) for text in texts if not _NAME.fullmatch(text)], field)
    return [(text, _end_pattern(text, field, deadline)) for text in texts]


def _end_pattern(text: str, field: str, deadline: Deadline) -> EndPattern:
    if _NAME.fullmatch(text):
        return _PlainEnd(text)
    return Pattern(text, field, deadline, template=_END)


def _compile(whole: str, field: str) -> "regex.Pattern[str]":
    try:
        re.compile(whole)  # what PEFT would accept
        return regex.compile(whole)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise _invalid(field, f"is not a valid regular expression: {error}") from None


def _check_size(text: str, field: str) -> None:
    if len(text) > MAX_PATTERN_CHARS or text.count("(") > _MAX_GROUPS:
        raise _invalid(field, f"is over {MAX_PATTERN_CHARS} characters or {_MAX_GROUPS} groups")
    if sum(map(text.count, "*+?{")) > _MAX_QUANTIFIERS:
        raise _invalid(field, f"has over {_MAX_QUANTIFIERS} repetitions, which take long to compile")
    # Compilers unroll counted repetitions, and nested ones multiply.
    counts = [max(int(low or 0), int(high or 0), 1) for low, high in _COUNT.findall(text)]
    if any(count > MAX_REPETITIONS for count in counts) or prod(counts) > MAX_REPETITIONS:
        raise _invalid(field, "has too many counted repetitions")


def _invalid(field: str, what: str) -> InvalidAdapter:
    return InvalidAdapter(f"{field} {what}", param=field)
