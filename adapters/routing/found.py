"""What a target stands for: adapter versions with weights, and by which routes it was found.

Weighted sums of what was found, as policies make them. Knows no registry.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..mixing import Ingredient, check_mixture
from ..registry_reader import AdapterRecord


class Hop(NamedTuple):
    """One route on the way to an answer.

    route: its name and version. chosen: the target that it chose; "" for a mixture of several. arm: the number of it,
    where the route has numbered ones. score: of the best candidate. scores: of all candidates, by target.
    """

    route: str
    version: int
    chosen: str = ""
    arm: int | None = None
    score: float | None = None
    scores: Sequence[tuple[str, float]] = ()


class Found(NamedTuple):
    """The adapters that a target stands for: none of them is the bare base.

    parts: versions and weights, each version once. hops: routes on the way, the outermost first.
    shadow: a target that is to answer too, and whose answer is dropped.
    """

    parts: tuple[tuple[AdapterRecord, float], ...] = ()
    hops: tuple[Hop, ...] = ()
    shadow: str | None = None


class Choice(NamedTuple):
    """The choice of one policy: what it found, and what the route's hop says of it."""

    found: Found
    chosen: str = ""
    arm: int | None = None
    score: float | None = None
    scores: Sequence[tuple[str, float]] = ()
    shadow: str | None = None


Follow = Callable[[str], Found]
"""Return what a target stands for. Raises AdapterNotFound, NotReady."""


def check_sum(parts: Sequence[tuple[AdapterRecord, float]]) -> None:
    """Check that versions can be added up with their weights, or the only one have its weight. Raises InvalidAdapter.

    Two names of one content are one adapter, called by the last.
    """
    if len(parts) == 1 and parts[0][1] == 1:
        return
    by_digest: dict[str, Ingredient] = {}
    for record, weight in parts:
        before = by_digest.get(record.digest)
        total = weight + (0.0 if before is None else before.weight)
        by_digest[record.digest] = Ingredient(str(record.ref), total, record.facts)
    check_mixture([*by_digest.values()])


def weighted_sum(terms: Sequence[tuple[Found, float]]) -> Found:
    """Return the sum of what was found, each times its weight; versions that come twice are added up."""
    if len(terms) == 1 and terms[0][1] == 1:
        return terms[0][0]
    total: dict[tuple[str, int], tuple[AdapterRecord, float]] = {}
    for found, weight in terms:
        for record, part in found.parts:
            before = total.get((record.name, record.version), (record, 0.0))[1]
            total[record.name, record.version] = (record, before + weight * part)
    hops = tuple(hop for found, _ in terms for hop in found.hops)
    return Found(tuple(total.values()), hops)
