"""Which adapters a mixture may hold: those whose weighted sum does not depend on their order.

Judged by facts alone: which kinds of primitives an adapter has, and at which modules those are whose order matters,
all layers taken together. Knows no registry and no model.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from .errors import InvalidAdapter
from .facts import AdapterFacts

# An entry of `Bypass.exclusive` to the reason why two adapters with it do not mix.
_EXCLUSIVE: Mapping[str, str] = {"DoRA": "each rescales what the other changed"}


class Ingredient(NamedTuple):
    """One adapter of a mixture. name: as messages call it. weight: the sum over all its mentions."""

    name: str
    weight: float
    facts: AdapterFacts


class _NonDelta(NamedTuple):
    """A property that makes an adapter more than a sum of deltas.

    one, two: as messages call one and two of it. why: the reason against two of it. has_weight: whether an adapter that
    has it can be served alone at another weight than 1.
    """

    one: str
    two: str
    why: str
    has_weight: bool


_NON_DELTAS: Mapping[str, _NonDelta] = {
    "kv_prefix": _NonDelta("a KV prefix", "two KV prefixes", "both want the first positions", False),
    "side_attention": _NonDelta("a side attention", "two side attentions", "each is a softmax of its own", False),
    "bottleneck": _NonDelta("a bottleneck", "two bottlenecks", "each reads what the other changes", False),
    "gate": _NonDelta("an invocation gate", "two invocation gates", "each waits for tokens of its own", True),
}


def check_mixture(ingredients: Sequence[Ingredient]) -> None:
    """Check a mixture of one or more different adapters. Raises InvalidAdapter with the first objection."""
    why = next(_objections(ingredients), None)
    if why is not None:
        raise InvalidAdapter(why, param="adapters")


def _objections(ingredients: Sequence[Ingredient]) -> Iterator[str]:
    if len(ingredients) == 1:
        yield from _without_weight(ingredients[0])
        return
    for rule in (_two_alike, _exclusive, _order):
        for a, b in combinations(ingredients, 2):
            yield from rule(a, b)
    for one in ingredients:
        yield from _unmixable(one)


def _without_weight(only: Ingredient) -> Iterator[str]:
    for kind, found in _NON_DELTAS.items():
        if kind in only.facts.primitives and not found.has_weight and only.weight != 1:
            yield f"{only.name} has {found.one}, which no weight scales: its weight can only be 1"


def _unmixable(one: Ingredient) -> Iterator[str]:
    for kind, found in _NON_DELTAS.items():
        if kind in one.facts.primitives:
            yield f"{one.name} has {found.one} and cannot be mixed: it is no sum of deltas, so weights have no meaning"


def _two_alike(a: Ingredient, b: Ingredient) -> Iterator[str]:
    for kind, found in _NON_DELTAS.items():
        if kind in a.facts.primitives and kind in b.facts.primitives:
            yield f"{found.two}, of {a.name} and {b.name}, cannot be mixed: {found.why}"


def _exclusive(a: Ingredient, b: Ingredient) -> Iterator[str]:
    for entry in a.facts.exclusive:
        if entry in b.facts.exclusive:
            why = _EXCLUSIVE.get(entry, "each is made for the base as it is")
            yield (
                f"two {entry} adapters, {a.name} and {b.name}, cannot be mixed: {why}, so the result depends on "
                "their order"
            )


def _order(a: Ingredient, b: Ingredient) -> Iterator[str]:
    for first, second in ((a, b), (b, a)):
        for module in first.facts.inputs:
            if module in second.facts.outputs:
                yield (
                    f"{first.name} and {second.name} cannot be mixed: the one changes the input of {module} and the "
                    "other multiplies or replaces its output, and these do not commute"
                )
