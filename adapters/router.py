"""The choice of a request's adapters: by name, version, the server's default, a weighted mixture, or a route's policy.

The answer is immutable: a request is answered by the versions that it was admitted with. Knows names, versions and
their rows in the registry; knows no files, no HTTP and no model.
"""

import copy
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from .errors import AdapterNotFound, InvalidAdapter
from .facts import AdapterFacts
from .names import DEFAULT, Reference, parse_reference
from .registry_reader import AdapterRecord
from .resolved import Member, Resolved
from .routing.bodies import MAX_MEMBERS, MAX_WEIGHT
from .routing.compiled import CompiledRoutes
from .routing.found import Found, Hop, check_sum
from .routing.query import LoadNeeded, Query
from .routing.stored import Route, RouteHead
from .routing.tables import MAX_DEPTH


class Names(Protocol):
    """The part of the registry that the router uses."""

    def find(self, name: str, version: int | None = None) -> AdapterRecord | None: ...

    def get_default(self) -> Reference | None: ...

    def is_damaged(self, digest: str) -> bool: ...

    def snapshot(self) -> AbstractContextManager[None]: ...


class Routes(Protocol):
    """The look-up of routes: `RouteReader`."""

    def head(self, name: str) -> RouteHead | None: ...

    def get(self, name: str) -> Route: ...


class Router:
    """The router of a server.

    base_id: the name that always means the bare base; so do those in `also`. routes: None where there are none.
    is_loaded: whether the adapter of a digest is in memory; of others a fallback asks whether they can be loaded.
    """

    def __init__(
        self,
        names: Names,
        base_id: str,
        routes: Routes | None = None,
        is_loaded: Callable[[str], bool] = lambda digest: True,
        also: Collection[str] = (),
    ) -> None:
        self._names = names
        self._base_id = base_id
        self._base_ids = frozenset({base_id, *also})
        self._routes = routes
        self._is_loaded = is_loaded
        self._compiled = CompiledRoutes()

    def seen_by(self, names: Names, routes: Routes) -> "Router":
        """Return the same router for one who sees these names and routes. Policies are made once for all."""
        router = copy.copy(self)
        router._names, router._routes = names, routes
        return router

    def resolve(
        self, model: str | None, adapters: Sequence[tuple[str, float]] | None = None, query: Query | None = None
    ) -> Resolved:
        """Choose the adapters of a request. To hold the answer, acquire its lease before the next await.

        model: the request's field. adapters: a mixture on the base; beside it, `model` may only be missing, the base's
            id or `default`.
        query: what routes may ask of the request.
        Raises AdapterNotFound, InvalidAdapter; NotReady if a route needs something first.
        """
        if adapters is not None:
            return self._mixture(model, adapters)
        if model in self._base_ids:
            return self._base()
        query = query or Query()
        if model is None or model == DEFAULT:
            with self._names.snapshot():
                return self._default(query)
        record = self._find(model)
        if record is not None:
            return _alone(record, model)
        with self._names.snapshot():
            head = self._head(model)  # most likely: it is no adapter
            return self._answer(self._follow(model, query, ()) if head is None else self._by_route(head, query, ()))

    def is_known(self, model: str | None) -> bool:
        """Return whether a request may name this: the base, the default, an adapter, a version or a route."""
        if model is None or model in (DEFAULT, *self._base_ids) or self._find(model) is not None:
            return True
        return self._head(model) is not None

    def alone(self, model: str | None) -> Resolved:
        """Return the adapter that a name stands for without asking a route; the base for every other name."""
        if model is None or model == DEFAULT:
            default = self._names.get_default()
            if default is None:
                return self._base()
            model = default.name if default.version is None else f"{default.name}@{default.version}"
        record = None if model in self._base_ids else self._find(model)
        return self._base() if record is None else _alone(record, model)

    def _default(self, query: Query) -> Resolved:
        default = self._names.get_default()
        if default is None:
            return self._base()
        name = default.name if default.version is None else f"{default.name}@{default.version}"
        return self._answer(self._follow(name, query, ()))

    def _follow(self, target: str, query: Query, way: tuple[str, ...]) -> Found:
        """Return what a target stands for, inside a snapshot. way: the routes that led to it."""
        if target in self._base_ids:
            return Found()
        if (record := self._find(target)) is not None:
            return Found(((record, 1.0),))
        head = self._head(target)
        if head is None:
            raise _unknown(target, way)
        return self._by_route(head, query, way)

    def _head(self, name: str) -> RouteHead | None:
        return None if self._routes is None else self._routes.head(name)

    def _by_route(self, head: RouteHead, query: Query, way: tuple[str, ...]) -> Found:
        """Return what a route chooses."""
        assert self._routes is not None
        if len(way) >= MAX_DEPTH:
            raise AdapterNotFound(f"{head.name!r} is reached by more than {MAX_DEPTH} routes", param="model")
        policy = self._compiled.policy(head, partial(self._routes.get, head.name))
        further = (*way, head.name)
        choice = policy(query, lambda name: self._follow(name, query, further), partial(self._can_answer, query))
        chosen = choice.chosen if choice.found.parts else choice.chosen or self._base_id
        hop = Hop(head.name, head.version, chosen, choice.arm, choice.score, choice.scores)
        return Found(choice.found.parts, (hop, *choice.found.hops), choice.shadow or choice.found.shadow)

    def _can_answer(self, query: Query, found: Found) -> bool:
        """Return whether what was found can be summed and loaded. Raises LoadNeeded where a load has to be tried."""
        try:
            self._answer(found)
        except InvalidAdapter:  # the members' newest versions are others than when the mixture was put
            return False
        refs = [record.ref for record, _ in found.parts]
        if any(not query.loads.get(ref.digest, True) or self._names.is_damaged(ref.digest) for ref in refs):
            return False
        for ref in refs:
            if ref.digest not in query.loads and not self._is_loaded(ref.digest):
                raise LoadNeeded(ref)
        return True

    def _answer(self, found: Found) -> Resolved:
        """Return what was found, by way of routes or as the default, as an answer."""
        if not found.parts:
            return Resolved((), self._base_id, self._base_id, hops=found.hops, shadow=found.shadow)
        (record, weight), *others = found.parts
        if not others and weight == 1:
            label = str(record.ref)
            return Resolved((Member(record.ref, 1.0),), label, label, _facts([record]), found.hops, found.shadow)
        return _sum(found)

    def _base(self) -> Resolved:
        return Resolved((), self._base_id, self._base_id)

    def _mixture(self, model: str | None, adapters: Sequence[tuple[str, float]]) -> Resolved:
        if model not in (None, DEFAULT, *self._base_ids):
            raise InvalidAdapter(
                f"give an adapter as model or a mixture as adapters; beside a mixture, model is {self._base_id!r}",
                param="model",
            )
        return self.mix(adapters)

    def mix(self, adapters: Sequence[tuple[str, float]]) -> Resolved:
        """Return the weighted sum of adapters. Raises AdapterNotFound, InvalidAdapter."""
        if not 1 <= len(adapters) <= MAX_MEMBERS:
            raise InvalidAdapter(
                f"a mixture has 1 to {MAX_MEMBERS} adapters, this one {len(adapters)}", param="adapters"
            )
        records = [self._member(name) for name, _ in adapters]
        weights = [_finite(name, weight) for name, weight in adapters]
        if len({record.ref[:2] for record in records}) < len(records):
            raise InvalidAdapter("an adapter may be in a mixture only once", param="adapters")
        return _sum(Found(tuple(zip(records, weights, strict=True))))

    def _member(self, name: str) -> AdapterRecord:
        record = self._find(name)
        if record is None:
            raise AdapterNotFound(f"there is no model or adapter {name[:140]!r}", param="adapters")
        return record

    def _find(self, text: str) -> AdapterRecord | None:
        reference = parse_reference(text)
        return None if reference is None else self._names.find(*reference)


def _unknown(target: str, way: tuple[str, ...]) -> AdapterNotFound:
    text = f"there is no model or adapter {target[:140]!r}"
    if way:
        text += f", which the route {way[-1]!r} leads to"
    return AdapterNotFound(text, param="model")


def _alone(record: AdapterRecord, model: str) -> Resolved:
    return Resolved((Member(record.ref, 1.0),), str(record.ref), model, _facts([record]))


def _facts(records: Sequence[AdapterRecord]) -> dict[str, AdapterFacts]:
    return {record.digest: record.facts for record in records}


def _sum(found: Found) -> Resolved:
    """Return a weighted sum as an answer. Raises InvalidAdapter if its members do not mix, or are too many."""
    if len(found.parts) > MAX_MEMBERS:
        raise InvalidAdapter(
            f"{len(found.parts)} adapters would answer together, and {MAX_MEMBERS} can", param="adapters"
        )
    members = tuple(Member(record.ref, _finite(str(record.ref), weight)) for record, weight in found.parts)
    check_sum(found.parts)
    label = "+".join(f"{member.ref}*{member.weight:g}" for member in members)
    return Resolved(members, label, label, _facts([record for record, _ in found.parts]), found.hops, found.shadow)


def _finite(name: str, weight: float) -> float:
    """Return a weight as a number. Raises InvalidAdapter."""
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise InvalidAdapter(
            f"the weight of {name[:140]!r} must be a number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}",
            param="adapters",
        )
    return float(weight)
