"""The shapes and scalings of LoRA's factors, as PEFT gives them to each module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("targets", "patterns"),
    [
        (["q_proj", "embed_tokens"], {"rank_pattern": {"embed_tokens": 2}}),
        (["q_proj", "embed_tokens"], {"rank_pattern": {"lm_head": 2}}),
        (["q_proj", "lm_head"], {"rank_pattern": {"lm_head": 8}, "alpha_pattern": {"lm_head": 3}}),
        (
            ["q_proj", "embed_tokens", "lm_head"],
            {
                "rank_pattern": {"lm_head": 8, "embed_tokens": 3},
                "alpha_pattern": {"embed_tokens": 9},
                "use_rslora": True,
            },
        ),
    ],
)
def test_patterns_at_one_of_a_tied_pair(
    targets: list[str],
    patterns: dict[str, Any],
    dora: bool,
    tiny_base: Callable[[str], Any],
    tmp_path: Path,
    as_peft: Callable[..., Any],
) -> None:
    """The head has the embedding's factors whatever rank its own pattern says, which its scaling goes by."""
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, ensure_weight_tying=True, use_dora=dora, **patterns
    )
    sites = as_peft(tiny_base("qwen2"), tmp_path, config).sites
    ranks = [p.rank for name in ("model.embed_tokens", "lm_head") for p in sites[name] if p.kind == "low_rank"]
    assert len(ranks) == 2
    assert ranks[0] == ranks[1]
