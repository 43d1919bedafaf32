"""What every adapter is compiled to, whatever PEFT method trained it.

Knows the closed set of primitives and their formulas; knows nothing of checkpoints, of the arena or of kernels.
To serve a new PEFT method is to write one function that returns a `Bypass` and to add one row to its table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """`y += b (a x)`: the low-rank bypass of LoRA (Hu et al. 2021, arXiv:2106.09685), every scaling folded into `b`.

    a: (rank, in_features). At an embedding, in_features is the vocabulary, and column `a[:, id]` belongs to token id.
    b: (out_features, rank).
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]


Primitive = LowRank
"""The union of all primitives. The others of the closed set join it with the methods that need them."""


@dataclass(frozen=True)
class Bypass:
    """One adapter, compiled against one base.

    method: PEFT's name of the method (`LORA`).
    sites: for each site's name (`model.layers.0.self_attn.q_proj`), its primitives in the order they apply.
    """

    method: str
    sites: Mapping[str, tuple[Primitive, ...]]

    @property
    def rank(self) -> int:
        """The largest rank over all sites; 0 for an adapter without a low-rank part."""
        return max((p.rank for primitives in self.sites.values() for p in primitives), default=0)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for ps in self.sites.values() for p in ps for t in (p.a, p.b))
