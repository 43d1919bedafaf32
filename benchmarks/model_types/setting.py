"""What a sweep varies: the seed, sizes that are given instead of drawn, the methods, and how long prompts are."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .shrinking import Shape

SIZES = ("hidden", "layers", "heads", "kv_heads", "tied")
COMMON = ("LoRA", "IA3", "DoRA")
LENGTHS = (5, 23, 41)  # of the prompts: within a chunk, over one, and past every window


@dataclass(frozen=True)
class Setting:
    """The setting of a sweep. sizes: by their names in Shape, None for what the seed draws. lengths: of the prompts."""

    seed: int = 0
    sizes: tuple[tuple[str, int | None], ...] = ()
    methods: tuple[str, ...] = COMMON
    lengths: tuple[int, ...] = LENGTHS

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Setting":
        sizes = tuple((name, getattr(arguments, name)) for name in SIZES)
        return cls(arguments.seed, sizes, tuple(arguments.methods), tuple(arguments.lengths))

    def shape(self) -> Shape:
        """Return the sizes of the models. Raises ValueError if they do not fit together."""
        return Shape.drawn(self.seed, **dict(self.sizes))

    def fields(self) -> dict[str, Any]:
        """Return what a record of this setting says of it."""
        return {"seed": self.seed, **dict(self.sizes), "methods": list(self.methods), "lengths": list(self.lengths)}

    def is_of(self, record: Mapping[str, Any]) -> bool:
        """Tell whether a record is of this setting. What it does not say was not given."""
        usual = dict.fromkeys(SIZES) | {"methods": list(COMMON), "lengths": list(LENGTHS)}
        return all({**usual, **record}.get(name) == value for name, value in self.fields().items())
