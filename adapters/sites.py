"""The sites of a base: the modules where an adapter can attach, by name, kind and shape.

The engine makes the table from the loaded model; compilers check checkpoints against it. Holds no model object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class SiteKind(StrEnum):
    """The kind of a module, by which methods say where they can be."""

    LINEAR = "linear"  # nn.Linear, Conv1D or a quantised linear: y = x Wᵀ + b
    EMBEDDING = "embedding"  # nn.Embedding: y = W[id] · embed_scale
    HEAD = "head"  # the output embedding: a linear
    INNER = "inner"  # a linear that a module makes by itself with its own weight, as a mixture's router does
    NORM = "norm"  # any other module with a one-dimensional weight: its parameters can be replaced
    EXPERTS = "experts"  # a mixture's experts in stacked parameters, computed by transformers' interface for them


class ExpertParameter(NamedTuple):
    """The weights of all experts, stored as (experts, out, in), or (experts, in, out) where the site is transposed."""

    name: str
    experts: int
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Site:
    """One wrapped module.

    in_features: width of the input; the vocabulary for an embedding.
    embed_scale: the factor by which an embedding multiplies its rows (Gemma); 1 elsewhere.
    transposed: whether the weight is stored as (in_features, out_features), as transformers' Conv1D does.
    parameters: of experts, in the module's order.
    swapped: of experts, whether PEFT does not know that their weights are stored as (experts, in, out): it has the
        factor A at the outputs, and B at the inputs.
    heads: of a norm whose weight is a matrix, with a row for each head; 0 of others.
    """

    name: str
    kind: SiteKind
    in_features: int
    out_features: int
    embed_scale: float = 1.0
    transposed: bool = False
    parameters: tuple[ExpertParameter, ...] = ()
    heads: int = 0
    swapped: bool = False


@dataclass(frozen=True)
class SiteTable:
    """All sites of a base, keyed by module name, in the model's own order.

    embedding: name of the input embedding. tied_head: the same where the head shares its weight; None where they are
        separate.
    other_modules: names of modules that exist in the base but are not sites (containers, activations), so that a
        configuration that targets one is told apart from one that targets nothing.
    irregular: modules with parameters of their own among them that do not run on each token of a step, or on each row
        whose logits are wanted, or that are called in a way of their own. matrices: linears and embeddings among these.
    unread: names of modules of a multimodal model that no text passes, and that are not loaded.
    uncalled: convolutions of which the model takes the weight and computes by itself, in prompts and in decodes.
    read: linears of which it does: most methods of PEFT put a layer around one, which nobody calls.
    """

    sites: Mapping[str, Site]
    head: str | None = None
    tied_head: str | None = None
    other_modules: frozenset[str] = frozenset()
    irregular: frozenset[str] = frozenset()
    embedding: str | None = None
    unread: frozenset[str] = frozenset()
    matrices: frozenset[str] = frozenset()
    uncalled: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
