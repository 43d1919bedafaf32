"""What a workload is, and the literature's own, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .lengths import Range

PROMPT_TOKENS, OUTPUT_TOKENS = Range(128, 128), Range(64, 64)


@dataclass(frozen=True)
class Workload:
    """rate: requests a second, in an open loop; None in a closed one, of `concurrency` clients. lengths: `punica`, or
    None for the two ranges. alpha: of the popularity, where it has one. cv: of the gaps between arrivals.
    """

    models: tuple[str, ...]
    num_requests: int
    seed: int = 0
    popularity: str = "distinct"
    alpha: float = 1.0
    rate: float | None = None
    cv: float = 1.0
    concurrency: int = 16
    lengths: str | None = None
    prompt_tokens: Range = PROMPT_TOKENS
    output_tokens: Range = OUTPUT_TOKENS

    def settings(self) -> dict[str, Any]:
        """As JSON; without what has no part in it."""
        settings = {name: str(value) if isinstance(value, Range) else value for name, value in vars(self).items()}
        idle = {"concurrency"} if self.rate is not None else {"rate", "cv"}
        idle |= {"prompt_tokens", "output_tokens"} if self.lengths else {"lengths"}
        idle |= set() if self.popularity in ("power", "zipf") else {"alpha"}
        return {name: value for name, value in settings.items() if name not in idle}


# What each sets unless the command says otherwise, by the names of the flags.
WORKLOADS: Mapping[str, Mapping[str, Any]] = {
    "s-lora": {
        "seed": 42,
        "rate": 2.0,
        "cv": 1.0,
        "duration": 300.0,
        "popularity": "power",
        "alpha": 1.0,
        "prompt_tokens": Range(8, 511),
        "output_tokens": Range(8, 511),
        "slo_ttft": 6.0,
    },
    "punica": {"concurrency": 32, "num_requests": 1024, "popularity": "distinct", "lengths": "punica"},
}
