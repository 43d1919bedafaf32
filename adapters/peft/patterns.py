"""Regular expressions that come with an adapter, run so that none can hold up the server.

PEFT reads them with `re`, whose search can take longer than the universe lasts. Here each is limited in length and
in counted repetitions, and all matching of one adapter shares one deadline. Matching lets other threads run.
"""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod

import regex

from ..errors import InvalidAdapter

MAX_PATTERN_CHARS = 1 << 15
MAX_PATTERNS = 4096
MAX_REPETITIONS = 1 << 16
MATCH_SECONDS = 5.0

_COUNT = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
# The limit on groups keeps the compiler's recursion far from the interpreter's.
_MAX_GROUPS = 100


class Deadline:
    """The time that all compiling and matching of one adapter may take together."""

    def __init__(self, seconds: float = MATCH_SECONDS) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Pattern:
    """One expression. field: the field that it comes from, for messages."""

    def __init__(self, text: str, field: str, deadline: Deadline, *, template: str = "{}") -> None:
        """Compile the expression. template: what PEFT builds around the client's. Raises InvalidAdapter."""
        self._field = field
        self._deadline = deadline
        with self._in_time():
            deadline.left()
            self._compiled = _compile(text, field, template)

    def fullmatch(self, name: str) -> bool:
        """Return whether the whole name matches. Raises InvalidAdapter when the time is up."""
        with self._in_time():
            return self._compiled.fullmatch(name, timeout=self._deadline.left(), concurrent=True) is not None

    def match(self, name: str) -> "regex.Match[str] | None":
        """Match at the beginning of a name. Raises InvalidAdapter when the time is up."""
        with self._in_time():
            return self._compiled.match(name, timeout=self._deadline.left(), concurrent=True)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise _invalid(self._field, "takes too long to match; use simpler expressions") from None


def pattern_keys(keys: Iterable[str], field: str, deadline: Deadline) -> list[tuple[str, Pattern]]:
    """Compile the keys of rank_pattern or alpha_pattern, which PEFT matches with the end of a module's name.

    Raises InvalidAdapter.
    """
    texts = list(keys)
    if len(texts) > MAX_PATTERNS:
        raise _invalid(field, f"has {len(texts)} entries; the limit is {MAX_PATTERNS}")
    return [(text, Pattern(text, field, deadline, template=r"(.*\.)?({})$")) for text in texts]


def _compile(text: str, field: str, template: str) -> "regex.Pattern[str]":
    _check_size(text, field)
    whole = template.replace("{}", text)
    try:
        re.compile(whole)  # what PEFT would accept
        return regex.compile(whole)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise _invalid(field, f"is not a valid regular expression: {error}") from None


def _check_size(text: str, field: str) -> None:
    if len(text) > MAX_PATTERN_CHARS or text.count("(") > _MAX_GROUPS:
        raise _invalid(field, f"is over {MAX_PATTERN_CHARS} characters or {_MAX_GROUPS} groups")
    # Compilers unroll counted repetitions, and nested ones multiply.
    counts = [max(int(low or 0), int(high or 0), 1) for low, high in _COUNT.findall(text)]
    if any(count > MAX_REPETITIONS for count in counts) or prod(counts) > MAX_REPETITIONS:
        raise _invalid(field, "has too many counted repetitions")


def _invalid(field: str, what: str) -> InvalidAdapter:
    return InvalidAdapter(f"{field} {what}", param=field)
