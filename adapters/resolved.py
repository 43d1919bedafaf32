"""The answer of the router for one request: adapter versions with weights, and how they were chosen. Immutable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import InvalidAdapter
from .facts import AdapterFacts
from .names import VersionRef
from .routing.found import Hop


class Member(NamedTuple):
    """One adapter version of a mixture, with its weight."""

    ref: VersionRef
    weight: float


@dataclass(frozen=True)
class Resolved:
    """The answer for one request.

    members: their weighted sum answers; empty for the bare base.
    label: for the header `x-peftserve-adapter`: the base's id, `sql@3`, or `a@1*0.7+b@2*0.3`.
    model: for the response's `model` field: the name that was asked for; for the default, a route and a mixture, the
        label.
    facts: of each member, by digest.
    hops: the routes by which it was chosen, the outermost first.
    shadow: a target that is to answer too, and whose answer is dropped.
    """

    members: tuple[Member, ...]
    label: str
    model: str
    facts: Mapping[str, AdapterFacts] = field(default_factory=dict, compare=False, repr=False)
    hops: tuple[Hop, ...] = ()
    shadow: str | None = None

    def vocabulary(self, base: int) -> int:
        """Return how many tokens its adapters know together. base: the base's own number."""
        return max((facts.vocabulary or base for facts in self.facts.values()), default=base)

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
