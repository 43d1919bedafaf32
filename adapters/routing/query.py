"""What a policy may ask about a request, and what the router may lack to answer. Knows no HTTP and no engine."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..names import VersionRef

Vector = Sequence[float]


class VectorKey(NamedTuple):
    """A text whose hidden states' mean is asked for.

    layer: None is the last. text: None is the request's own. is_chat: it is run as a chat with the model is, as the
    user's only message.
    """

    layer: int | None
    text: str | None
    is_chat: bool = False


def _no_header(_: str) -> str | None:
    return None


@dataclass(frozen=True)
class Query:
    """A request, as policies see it.

    text: returns what its content is judged by: the prompt, or if it `is_chat` the user's last message.
    user: the request's field. header: looks up a header by its lower-case name.
    now: seconds since 1970. draw: a number of [0, 1) for each call.
    vectors: what the router has been told of the request, after it raised VectorsNeeded.
    loads: digest to whether the adapter could be loaded, after it raised LoadNeeded.
    """

    text: Callable[[], str] = str
    user: str | None = None
    header: Callable[[str], str | None] = _no_header
    now: float = field(default_factory=time.time)
    draw: Callable[[], float] = random.random
    vectors: Mapping[VectorKey, Vector] = field(default_factory=dict)
    loads: Mapping[str, bool] = field(default_factory=dict)
    is_chat: bool = False


class NotReady(Exception):
    """The base of what the router lacks. Get it, and resolve again."""


class PolicyNeeded(NotReady):
    """A route's policy takes a while to make: call `make` on a thread."""

    def __init__(self, make: Callable[[], object]) -> None:
        super().__init__()
        self.make = make


class LoadNeeded(NotReady):
    """Whether a version can be loaded is not known: try, and put the outcome into the query's loads."""

    def __init__(self, ref: VersionRef) -> None:
        super().__init__()
        self.ref = ref


class VectorsNeeded(NotReady):
    """Hidden states of the base are needed: put the mean of each of `keys` into the query's vectors."""

    def __init__(self, keys: Sequence[VectorKey]) -> None:
        super().__init__()
        self.keys = keys
