"""The configuration of a merged adapter, as PEFT writes it. Knows no tensors; no torch.

It is the first adapter's with another rank. As in PEFT, r = lora_alpha, so that nothing is scaled: what scaled each
adapter is in the factors. PEFT 0.21 keeps the first one's `use_rslora`, `layers_to_transform` and `exclude_modules`,
by which later releases or the other adapters mean something else; here the result is the sum of what went in.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..peft.methods import METHODS
from ..peft.patterns import MAX_PATTERN_CHARS
from .sources import Source

_MAX_GROUPS = 50
_CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")
_OF_TRAINING = ("velora_config", "monteclora_config", "eva_config", "lora_ga_config", "corda_config")


def merged_config(sources: Sequence[Source], rank: int, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields of adapter_config.json. rank: of the result. ranks: by module, where they differ."""
    known = METHODS["LORA"].known
    config = {name: value for name, value in sources[0].raw.items() if name in known}
    config |= dict.fromkeys(name for name in _OF_TRAINING if name in config)
    patterns = _patterns(rank, ranks)
    joined = _joined_targets(sources)
    if joined is None:
        joined = sorted(ranks)
        config |= dict.fromkeys(_CHOICES)
    return config | {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": joined,
        "use_rslora": False,
        "lora_bias": any(source.config.variant.bias for source in sources),
        "init_lora_weights": True,
        "ensure_weight_tying": False,
        "inference_mode": True,
    }


def _patterns(rank: int, ranks: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks of modules that have another one than the adapter, by expressions as PEFT reads them.

    A module's last component stands for all of them where they have one rank.
    """
    ends: dict[str, Counter[int]] = {}
    for module, own in ranks.items():
        ends.setdefault(module.rpartition(".")[2], Counter())[own] += 1
    patterns = {}
    for module, own in sorted(ranks.items()):
        end = module.rpartition(".")[2]
        if own != rank:
            patterns[re.escape(end if len(ends[end]) == 1 else module)] = own
    return patterns


def _joined_targets(sources: Sequence[Source]) -> list[str] | str | None:
    """Return what targets the modules of all adapters and no others, in PEFT's way; None where that takes their names.

    Lists are united and expressions joined, unless an adapter chooses among what they match.
    """
    if any(source.raw.get(name) for source in sources for name in _CHOICES):
        return None
    found = [source.config.targets for source in sources]
    if all(isinstance(targets.modules, tuple) for targets in found):
        return sorted({name for targets in found for name in targets.modules})
    texts = [targets.modules for targets in found if isinstance(targets.modules, str) and not targets.all_linear]
    if len(texts) < len(found):
        return None
    joined = "|".join(f"({text})" for text in texts)
    return joined if len(joined) <= MAX_PATTERN_CHARS and joined.count("(") <= _MAX_GROUPS else None
