"""The compiled form of an adapter, the same for every method.

To serve a new PEFT method is to write one function that returns a `Bypass` and to add one row to its table. Knows
nothing of checkpoints, of the arena or of kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from .primitives import ExpertLowRank, LowRank, Primitive, RoutedLowRank

StateKind = Literal["conv", "recurrent", "linear"]


@dataclass(frozen=True)
class StateKey:
    """One state that a recurrent base keeps beside keys and values. index: among several of one kind in a layer."""

    kind: StateKind
    layer: int
    index: int


@dataclass(frozen=True)
class KVPrefix:
    """Keys and values before the first token, which then is at position `length`.

    layers: layer index to (keys, values), each (length, kv heads, dim), as the cache holds them: positions applied.
    states: of a recurrent base, what it keeps behind them, without the dimension of a batch.
    """

    length: int
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    states: Mapping[StateKey, torch.Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all keys, values and states."""
        states = sum(state.nbytes for state in self.states.values())
        return states + sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())


@dataclass(frozen=True)
class SideAttention:
    """`o += softmax(q keysᵀ · scale) values` in one layer, with a softmax of its own beside the attention's.

    keys, values: (length, kv heads, dim), without positions; the gate is folded into values. scale: of the scores.
    LLaMA-Adapter (Zhang et al. 2023, arXiv:2303.16199).
    """

    keys: torch.Tensor
    values: torch.Tensor
    scale: float

    @property
    def num_bytes(self) -> int:
        """Return the bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True)
class Bypass:
    """One adapter, compiled against one base.

    method: PEFT's name of the method (`LORA`), or `BOTTLENECK`.
    sites: site's name (`model.layers.0.self_attn.q_proj`) to its primitives.
    prefix: keys and values before the prompt. side_attention: layer index to the attention that is added there.
    invocation: token ids; the adapter works from their last occurrence in the prompt on. Empty: on all tokens.
    exclusive: properties that two adapters of one mixture must not share, such as DoRA's; `mixing` says why.
    num_tasks: number of tasks, of which a request names one; 0 for a method without tasks.
    vocabulary, predicted: how many tokens it reads, and how many its head can say; 0 where those are the base's.
    """

    method: str
    sites: Mapping[str, tuple[Primitive, ...]]
    prefix: KVPrefix | None = None
    side_attention: Mapping[int, SideAttention] | None = None
    invocation: tuple[int, ...] = ()
    exclusive: tuple[str, ...] = ()
    num_tasks: int = 0
    vocabulary: int = 0
    predicted: int = 0

    @property
    def rank(self) -> int:
        """Return the largest rank over all sites; 0 for an adapter without a low-rank term."""
        low_rank = (sum(p.rank for p in ps if isinstance(p, LowRank)) for ps in self.sites.values())
        experts = (p.rank for ps in self.sites.values() for p in ps if isinstance(p, ExpertLowRank | RoutedLowRank))
        return max((*low_rank, *experts), default=0)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors; one that several modules share counts once."""
        sites = sum(primitive.num_bytes for primitives in self.sites.values() for primitive in primitives)
        prefix = 0 if self.prefix is None else self.prefix.num_bytes
        return (
            sites + self._shared_bytes() + prefix + sum(side.num_bytes for side in (self.side_attention or {}).values())
        )

    def _shared_bytes(self) -> int:
        shared = [p.tensors()[name] for ps in self.sites.values() for p in ps for name in p.shared]
        return sum({id(tensor): tensor.nbytes for tensor in shared}.values())
