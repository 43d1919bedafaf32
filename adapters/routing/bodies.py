"""The bodies of routes, one struct a kind, told apart by `kind`. Knows the range of each field, and no registry."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from ..errors import InvalidAdapter

MAX_ARMS = 64
MAX_CANDIDATES = 256
MAX_EXAMPLES = 10_000  # of all candidates together
MAX_EXAMPLE = 8192  # characters of one
MAX_MEMBERS = 8  # adapters of a mixture
MAX_TEXT = 1 << 18  # characters of all examples together: what a request costs grows with them
MAX_STATES = 512  # texts of a route that the base runs
MAX_WEIGHT = 1e4
_STICKY = re.compile(r"user|header:[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")

Target = Annotated[
    str,
    Meta(min_length=1, max_length=256, description="The base's id, an adapter, `name@version`, or another route."),
]
Weight = Annotated[float, Meta(ge=0, description="0 or more.")]
Share = Annotated[float, Meta(ge=0, le=1)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of parts of bodies."""


class Alias(_Part, tag="alias", tag_field="kind", frozen=True):
    """Another name for a target."""

    target: Target


class Arm(_Part, frozen=True):
    """One of the targets between which a split divides requests."""

    target: Target
    weight: Weight


class Ramp(_Part, rename={"start": "from", "end": "to"}, frozen=True):
    """A share of one arm that changes with the time since the route was put; the others share the rest."""

    arm: Annotated[int, Meta(ge=0, description="Number of the arm, from 0.")]
    start: Share
    end: Share
    seconds: Annotated[float, Meta(gt=0)]


class Split(_Part, tag="split", tag_field="kind", frozen=True):
    """A division of requests between arms by their weights."""

    arms: Annotated[tuple[Arm, ...], Meta(min_length=1, max_length=MAX_ARMS)]
    sticky: Annotated[
        str | None, Meta(description="What stays with its arm: `user`, `header:NAME`, or null for each request alone.")
    ] = None
    salt: Annotated[
        str, Meta(max_length=256, description="Splits of one salt divide alike; the route's name if it is empty.")
    ] = ""
    ramp: Ramp | None = None
    shadow: Annotated[Target | None, Meta(description="Also answers, and its answer is dropped.")] = None


class Candidate(_Part, frozen=True):
    """A target with texts that say which prompts are its own."""

    target: Target
    examples: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    description: str = ""

    @property
    def texts(self) -> list[str]:
        """Return what prompts are compared with, each once: examples and keywords, or else the description.

        A description says what a prompt is about and not how it reads, so beside examples it would only blur them.
        """
        texts = [text for text in (*self.examples, *self.keywords) if text.strip()]
        return list(dict.fromkeys(texts or [text for text in (self.description,) if text.strip()]))


class Match(_Part, tag="match", tag_field="kind", frozen=True):
    """A choice by the prompt's content."""

    candidates: Annotated[tuple[Candidate, ...], Meta(min_length=1, max_length=MAX_CANDIDATES)]
    encoder: Literal["tfidf", "base"] = "tfidf"
    threshold: Annotated[float, Meta(ge=-1, le=1, description="Least score of a candidate that answers.")] = 0.3
    top_k: Annotated[int, Meta(ge=1, le=MAX_MEMBERS, description="Most candidates that answer as a mixture.")] = 1
    fallback: Annotated[Target | None, Meta(description="Answers below the threshold; null is the bare base.")] = None
    layer: Annotated[int | None, Meta(description="With `base`: the layer whose states are compared.")] = None


class Member(_Part, frozen=True):
    """An adapter of a mixture, with its weight."""

    name: Target
    weight: float


class Mixture(_Part, tag="mixture", tag_field="kind", frozen=True):
    """A weighted sum of adapters."""

    adapters: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]


class Fallback(_Part, tag="fallback", tag_field="kind", frozen=True):
    """The first of its targets that exists and can answer."""

    targets: Annotated[tuple[Target, ...], Meta(min_length=1, max_length=MAX_ARMS)]


Body = Alias | Split | Match | Mixture | Fallback

_decoder: msgspec.json.Decoder[Body] = msgspec.json.Decoder(Body)


def parse_body(text: bytes | str) -> Body:
    """Parse a route's body. Raises InvalidAdapter saying what is wrong and where."""
    try:
        body = _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidAdapter(f"the route's body: {error}{_hint(str(error))}", param="body") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidAdapter("the route's body is no JSON", param="body") from None
    check = _CHECKS.get(type(body))
    if check is not None:
        check(body)
    return body


def _hint(message: str) -> str:
    kinds = ", ".join(str(kind.__struct_config__.tag) for kind in get_args(Body))
    return f"; the kind is one of {kinds}" if "$.kind" in message or "`kind`" in message else ""


def _check_split(body: Split) -> None:
    total = sum(arm.weight for arm in body.arms)
    if not 0 < total < math.inf:
        raise InvalidAdapter("the weights of a split are numbers of 0 and more, with a sum over 0", param="arms")
    if body.ramp is not None and body.ramp.arm >= len(body.arms):
        raise InvalidAdapter(f"ramp.arm is {body.ramp.arm}, and there are {len(body.arms)} arms", param="ramp")
    if body.sticky is not None and not _STICKY.fullmatch(body.sticky):
        raise InvalidAdapter('sticky is "user", "header:" with the name of a header, or null', param="sticky")


def _check_mixture(body: Mixture) -> None:
    for part in body.adapters:
        if not abs(part.weight) <= MAX_WEIGHT:
            raise InvalidAdapter(
                f"the weight of {part.name!r} must be a number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}",
                param="adapters",
            )


def _check_match(body: Match) -> None:
    texts = [text for one in body.candidates for text in one.texts]
    for number, one in enumerate(body.candidates):
        if not one.texts:
            raise InvalidAdapter(
                f"the candidate {number}, {one.target!r}, has neither examples nor keywords nor a description",
                param="candidates",
            )
    if max(map(len, texts)) > MAX_EXAMPLE or len(texts) > MAX_EXAMPLES or sum(map(len, texts)) > MAX_TEXT:
        raise InvalidAdapter(
            f"examples, keywords and descriptions are {MAX_EXAMPLES} at most, of {MAX_EXAMPLE} characters each and "
            f"{MAX_TEXT} together",
            param="candidates",
        )
    if body.encoder == "base" and len(texts) > MAX_STATES:
        raise InvalidAdapter(
            f'the base runs every text once: with the encoder "base" there may be {MAX_STATES} at most, here are '
            f"{len(texts)}",
            param="candidates",
        )
    if body.layer is not None and body.encoder != "base":
        raise InvalidAdapter('layer is for the encoder "base" only', param="layer")


_CHECKS: Mapping[type[Body], Callable[[Any], None]] = {
    Split: _check_split,
    Match: _check_match,
    Mixture: _check_mixture,
}
"""What no field can check by itself."""
