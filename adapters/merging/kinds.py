"""The kinds of merges, one row a kind: which ranks it joins, and what it has of a request's options. No torch.

`methods` computes them, under the same names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

import msgspec

from ..errors import InvalidAdapter

MAX_SOURCES = 32
MAX_WEIGHT = 1e4
MAX_SVD_RANK = 1 << 16
MAX_SEED = (1 << 63) - 1

MajoritySign = Literal["total", "frequency"]


class Ranks(Enum):
    """The rank of what comes out.

    EQUAL: of all that go in, which must be the same. SUM: their sum. LARGEST: the largest, or `svd_rank`.
    EXACT: their sum, which loses nothing, or `svd_rank`.
    """

    EQUAL = auto()
    SUM = auto()
    LARGEST = auto()
    EXACT = auto()


@dataclass(frozen=True)
class Kind:
    """One kind. like_peft: PEFT has it. pair: it joins exactly two, between which the weights say the place."""

    ranks: Ranks
    like_peft: bool = True
    pair: bool = False


KINDS: Mapping[str, Kind] = {
    "cat": Kind(Ranks.SUM),
    "linear": Kind(Ranks.EQUAL),
    "svd": Kind(Ranks.LARGEST),
    "ties": Kind(Ranks.EQUAL),
    "ties_svd": Kind(Ranks.LARGEST),
    "dare_linear": Kind(Ranks.EQUAL),
    "dare_ties": Kind(Ranks.EQUAL),
    "dare_linear_svd": Kind(Ranks.LARGEST),
    "dare_ties_svd": Kind(Ranks.LARGEST),
    "magnitude_prune": Kind(Ranks.EQUAL),
    "magnitude_prune_svd": Kind(Ranks.LARGEST),
    "della": Kind(Ranks.LARGEST, like_peft=False),
    "knots": Kind(Ranks.EXACT, like_peft=False),
    "slerp": Kind(Ranks.EXACT, like_peft=False, pair=True),
}


class Options(msgspec.Struct, frozen=True):
    """How adapters are merged.

    combination_type: a key of KINDS. density: the share of entries that pruning keeps. majority_sign_method: what
    elects a sign, the sum of all values or the number of signs. svd_rank: of the result, for kinds that choose it; None
    for the kind's own. seed: of what is drawn.
    """

    combination_type: str = "linear"
    density: float = 0.5
    majority_sign_method: MajoritySign = "total"
    svd_rank: int | None = None
    seed: int = 0

    def kind_of(self, num_sources: int) -> str:
        """Return the kind that joins so many adapters: PEFT merges a single one by `linear`, whatever was asked for."""
        return "linear" if num_sources == 1 and KINDS[self.combination_type].like_peft else self.combination_type


def check_options(options: Options, weights: Sequence[float]) -> None:
    """Raise InvalidAdapter for what no adapters could be merged by. weights: one for each adapter."""
    kind = KINDS.get(options.combination_type)
    if kind is None:
        raise InvalidAdapter(
            f"combination_type {options.combination_type[:40]!r} is none of {', '.join(KINDS)}",
            param="combination_type",
        )
    if not 0 < options.density <= 1:
        raise InvalidAdapter(
            f"density is the share of entries that are kept, over 0 and at most 1, not {options.density:g}",
            param="density",
        )
    if options.svd_rank is not None and not 1 <= options.svd_rank <= MAX_SVD_RANK:
        raise InvalidAdapter(f"svd_rank must be 1 to {MAX_SVD_RANK}, not {options.svd_rank}", param="svd_rank")
    if not 0 <= options.seed <= MAX_SEED:
        raise InvalidAdapter(f"seed must be 0 to {MAX_SEED}, not {options.seed}", param="seed")
    _check_weights(options.combination_type, kind, weights)


def _check_weights(name: str, kind: Kind, weights: Sequence[float]) -> None:
    if not 1 <= len(weights) <= MAX_SOURCES:
        raise InvalidAdapter(f"a merge takes 1 to {MAX_SOURCES} adapters, not {len(weights)}", param="adapters")
    if not all(math.isfinite(weight) and abs(weight) <= MAX_WEIGHT for weight in weights):
        raise InvalidAdapter(f"a weight must be a number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}", param="adapters")
    if not kind.pair:
        return
    if len(weights) != 2:
        raise InvalidAdapter(f"{name} goes between exactly two adapters, not {len(weights)}", param="adapters")
    if min(weights) < 0 or sum(weights) <= 0:
        raise InvalidAdapter(
            f"the weights of {name} say the place between the two: 0 and more, with a sum over 0", param="adapters"
        )
