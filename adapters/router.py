"""The choice of a request's adapters: by name, version, the server's default, a weighted mixture, or a route's policy.

The answer is immutable: a request is answered by the versions that it was admitted with. Knows names, versions and
their rows in the registry; knows no files, no HTTP and no model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from .errors import AdapterNotFound, InvalidAdapter
from .facts import AdapterFacts
from .mixing import Ingredient, check_mixture
from .names import DEFAULT, VersionRef, parse_reference
from .registry_reader import AdapterRecord

MAX_MEMBERS = 8
MAX_WEIGHT = 1e4

_ROUTES: Mapping[str, "Policy"] = {}


class Member(NamedTuple):
    """One adapter version of a mixture, with its weight."""

    ref: VersionRef
    weight: float


@dataclass(frozen=True)
class Resolved:
    """The answer for one request.

    members: their weighted sum answers; empty for the bare base.
    label: for the header `x-peftserve-adapter`: the base's id, `sql@3`, or `a@1*0.7+b@2*0.3`.
    model: for the response's `model` field: the name that was asked for; for the default and for a mixture, the label.
    facts: of each member, by digest.
    """

    members: tuple[Member, ...]
    label: str
    model: str
    facts: Mapping[str, AdapterFacts] = field(default_factory=dict, compare=False, repr=False)

    @property
    def vocabulary(self) -> int:
        """Return the size of its adapters' vocabulary where that is larger than the base's; else 0."""
        return max((facts.vocabulary for facts in self.facts.values()), default=0)

    @property
    def virtual_tokens(self) -> int:
        """Return the number of positions that the adapter takes before the prompt."""
        return sum(facts.virtual_tokens for facts in self.facts.values())

    def weights(self) -> dict[str, float]:
        """Return digest to weight. Weights of two names with one digest are added up."""
        total: dict[str, float] = {}
        for ref, weight in self.members:
            total[ref.digest] = total.get(ref.digest, 0.0) + weight
        return total

    def tasks(self, task_id: int | None) -> dict[str, int]:
        """Return digest to task, for the adapters with tasks. An adapter with a single task needs no `task_id`.

        Raises InvalidAdapter where an adapter has no such task, or none has any.
        """
        counts = {ref: self.facts[ref.digest].num_tasks for ref, _ in self.members if self.facts[ref.digest].num_tasks}
        if task_id is not None and not counts:
            raise InvalidAdapter(f"{self.label} has no tasks: leave task_id out", param="task_id")
        chosen = {ref: 0 if task_id is None and count == 1 else task_id for ref, count in counts.items()}
        for ref, task in chosen.items():
            if task is None or not 0 <= task < counts[ref]:
                raise InvalidAdapter(
                    f"{ref} has {counts[ref]} tasks: give one of 0 to {counts[ref] - 1}", param="task_id"
                )
        return {ref.digest: task for ref, task in chosen.items() if task is not None}


class Names(Protocol):
    """The part of the registry that the router uses."""

    def find(self, name: str, version: int | None = None) -> AdapterRecord | None: ...

    def find_default(self) -> AdapterRecord | None: ...


class Policy(Protocol):
    """The policy of one route."""

    def choose(self, prompt_token_ids: Sequence[int] | None, user: str | None) -> Sequence[tuple[str, float]]:
        """Choose adapters for a request: pairs of `name` or `name@version` and a weight; none is the bare base."""


class Router:
    """The router of a server. base_id: the name that always means the bare base. routes: name to policy."""

    def __init__(self, names: Names, base_id: str, routes: Mapping[str, Policy] = _ROUTES) -> None:
        self._names = names
        self._base_id = base_id
        self._routes = routes

    def resolve(
        self,
        model: str | None,
        adapters: Sequence[tuple[str, float]] | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        user: str | None = None,
    ) -> Resolved:
        """Choose the adapters of a request. To hold the answer, acquire its lease before the next await.

        model: the request's field. adapters: a mixture on the base; beside it, `model` may only be missing, the base's
            id or `default`.
        Raises AdapterNotFound, InvalidAdapter.
        """
        if adapters is not None:
            return self._mixture(model, adapters)
        if model is None or model == DEFAULT:
            return self._default()
        if model == self._base_id:
            return self._base()
        if policy := self._routes.get(model):
            return self._mixed(policy.choose(prompt_token_ids, user), model)
        return self._single(model)

    def _base(self) -> Resolved:
        return Resolved((), self._base_id, self._base_id)

    def _default(self) -> Resolved:
        record = self._names.find_default()
        return self._base() if record is None else _alone(record, str(record.ref))

    def _single(self, model: str) -> Resolved:
        return _alone(self._find(model, "model"), model)

    def _mixture(self, model: str | None, adapters: Sequence[tuple[str, float]]) -> Resolved:
        if model not in (None, DEFAULT, self._base_id):
            raise InvalidAdapter(
                f"give an adapter as model or a mixture as adapters; beside a mixture, model is {self._base_id!r}",
                param="model",
            )
        if not 1 <= len(adapters) <= MAX_MEMBERS:
            raise InvalidAdapter(
                f"a mixture has 1 to {MAX_MEMBERS} adapters, this one {len(adapters)}", param="adapters"
            )
        return self._mixed(adapters, None)

    def _mixed(self, chosen: Sequence[tuple[str, float]], model: str | None) -> Resolved:
        if not chosen:
            return self._base()
        records = [self._find(name, "adapters") for name, _ in chosen]
        members = tuple(Member(record.ref, _checked(*pair)) for record, pair in zip(records, chosen, strict=True))
        if len({(member.ref.name, member.ref.version) for member in members}) < len(members):
            raise InvalidAdapter("an adapter may be in a mixture only once", param="adapters")
        label = "+".join(f"{member.ref}*{member.weight:g}" for member in members)
        facts = {record.digest: record.facts for record in records}
        resolved = Resolved(members, label, label if model is None else model, facts)
        check_mixture(_ingredients(resolved))
        return resolved

    def _find(self, text: str, param: str) -> AdapterRecord:
        reference = parse_reference(text)
        record = None if reference is None else self._names.find(*reference)
        if record is None:
            raise AdapterNotFound(f"there is no model or adapter {text[:140]!r}", param=param)
        return record


def _alone(record: AdapterRecord, model: str) -> Resolved:
    return Resolved((Member(record.ref, 1.0),), str(record.ref), model, {record.digest: record.facts})


def _ingredients(resolved: Resolved) -> list[Ingredient]:
    """Return the members by digest: two names of one digest are one adapter, called by the last."""
    names = {ref.digest: str(ref) for ref, _ in resolved.members}
    return [Ingredient(names[digest], weight, resolved.facts[digest]) for digest, weight in resolved.weights().items()]


def _checked(name: str, weight: float) -> float:
    """Return a weight as a number. Raises InvalidAdapter."""
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise InvalidAdapter(
            f"the weight of {name[:140]!r} must be a number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}",
            param="adapters",
        )
    return float(weight)
