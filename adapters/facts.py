"""What is known of an adapter once it compiled against the base: the part of its card that does not change.

Compilers make it, the registry keeps it, the API shows it. Knows no names, no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class FactsLike(Protocol):
    """Anything with these fields: `AdapterFacts`, or the message in which they cross from the engine."""

    @property
    def method(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def primitives(self) -> Mapping[str, int]: ...
    @property
    def sites(self) -> int: ...
    @property
    def consumed(self) -> int: ...


@dataclass(frozen=True)
class AdapterFacts:
    """method: PEFT's name (`LORA`). rank: the largest over all sites. num_bytes: of the compiled tensors.

    primitives: primitive to number of sites. sites: number of modules that it changes.
    consumed: number of tensors of the checkpoint, each of which is served.
    """

    method: str
    rank: int
    num_bytes: int
    primitives: Mapping[str, int]
    sites: int
    consumed: int

    @classmethod
    def of(cls, facts: FactsLike) -> "AdapterFacts":
        return cls(facts.method, facts.rank, facts.num_bytes, dict(facts.primitives), facts.sites, facts.consumed)
