"""The policies of routes: for each kind of body how it chooses, what it names, and what it checks when it is put.

To add a kind is to add a struct to `bodies`, a function here and a row in KINDS.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import AdapterNotFound, InvalidAdapter
from .bodies import Alias, Body, Fallback, Match, Mixture, Split
from .found import Choice, Follow, Found, check_sum, weighted_sum
from .match import match_policy
from .query import Query
from .split import arm_chooser
from .stored import Find, Route

Policy = Callable[[Query, Follow, Callable[[Found], bool]], Choice]
"""Choose for one request. The last argument says whether what was found can answer.

Raises AdapterNotFound, NotReady.
"""


class Kind(NamedTuple):
    """One kind of route.

    make: returns the policy of a route. targets: the names in a body, as a request would write them.
    is_slow: whether `make` takes longer than an event loop may stand still.
    check: checks a body whose targets exist. Raises InvalidAdapter.
    """

    make: Callable[[Any, Route], Policy]
    targets: Callable[[Any], Iterator[str]]
    is_slow: bool = False
    check: Callable[[Any, Find], None] | None = None


def _alias(body: Alias, _: Route) -> Policy:
    return lambda query, follow, healthy: Choice(follow(body.target), body.target)


def _split(body: Split, route: Route) -> Policy:
    arm_of = arm_chooser(body, route.name, route.created)

    def choose(query: Query, follow: Follow, healthy: object) -> Choice:
        arm = arm_of(query)
        target = body.arms[arm].target
        return Choice(follow(target), target, arm, shadow=body.shadow)

    return choose


def _mixture(body: Mixture, _: Route) -> Policy:
    return lambda query, follow, healthy: Choice(
        weighted_sum([(follow(part.name), part.weight) for part in body.adapters])
    )


def _fallback(body: Fallback, route: Route) -> Policy:
    def choose(query: Query, follow: Follow, healthy: Callable[[Found], bool]) -> Choice:
        for number, target in enumerate(body.targets):
            try:
                found = follow(target)
            except AdapterNotFound:
                continue
            if healthy(found):
                return Choice(found, target, number)
        raise AdapterNotFound(
            f"none of the targets of the route {route.name!r} exists and can answer: {', '.join(body.targets[:8])}"
        )

    return choose


def _check_mixture(body: Mixture, find: Find) -> None:
    """Check the adapters of a mixture. Of a route among them, what it stands for is known with a request only."""
    found = [(record, part.weight) for part in body.adapters if (record := find(part.name)) is not None]
    if len({record.ref[:2] for record, _ in found}) < len(found):
        raise InvalidAdapter("an adapter may be in a mixture only once", param="adapters")
    if len(found) == len(body.adapters):
        check_sum(found)


def _match_targets(body: Match) -> Iterator[str]:
    yield from (candidate.target for candidate in body.candidates)
    if body.fallback is not None:
        yield body.fallback


def _split_targets(body: Split) -> Iterator[str]:
    yield from (arm.target for arm in body.arms)
    if body.shadow is not None:
        yield body.shadow


KINDS: Mapping[type[Body], Kind] = {
    Alias: Kind(_alias, lambda body: iter((body.target,))),
    Split: Kind(_split, _split_targets),
    Match: Kind(match_policy, _match_targets, is_slow=True),
    Mixture: Kind(_mixture, lambda body: (part.name for part in body.adapters), check=_check_mixture),
    Fallback: Kind(_fallback, lambda body: iter(body.targets)),
}


def targets_of(body: Body) -> list[str]:
    """Return the names that a body names, as a request would write them, in order and each once."""
    return list(dict.fromkeys(KINDS[type(body)].targets(body)))


def check_targets(body: Body, find: Find) -> None:
    """Check a body whose targets exist by what its kind asks of them. Raises InvalidAdapter."""
    check = KINDS[type(body)].check
    if check is not None:
        check(body, find)
