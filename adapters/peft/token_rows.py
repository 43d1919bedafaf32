"""Trainable tokens: rows of the embedding that an adapter replaces, and the same rows of a head tied to it.

PEFT calls the tensor `trainable_tokens_delta`, but it holds the rows themselves, (k, width), in the order of the
configured ids, before Gemma's embedding multiplies them.
"""

from collections.abc import Mapping

import torch

from ..bypass import Bypass
from ..errors import InvalidAdapter
from ..primitives import TokenRows
from ..sites import Site, SiteKind
from .base import Base, NamedTensor
from .config import AnyConfig, AuxiliaryConfig, MethodConfig, parse_targets
from .listing import listed
from .targets import targeted_sites
from .tensors import Checkpoint

_ROWS = "trainable_tokens_delta"
_ORIGINAL = "trainable_tokens_original"  # the base's rows, which come along when the vocabulary was resized
_BESIDE = "token_adapter."
_KINDS = frozenset({SiteKind.EMBEDDING, SiteKind.HEAD})

Ids = tuple[int, ...]


def compile_trainable_tokens(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a TRAINABLE_TOKENS adapter: the method by itself. Raises InvalidAdapter."""
    fields = config.fields
    if fields.value("target_modules"):
        names = targeted_sites(parse_targets(fields), base.table, base.deadline, kinds=_KINDS)
    else:
        names = [_input_embedding(checkpoint, base, "")]
    ids = fields.integers("token_indices")
    rows = _taken(dict.fromkeys(names, ids), checkpoint, base, "")
    return Bypass(config.peft_type, {name: (rows[name],) for name in base.table.sites if name in rows})


def replaced_rows(config: AuxiliaryConfig, checkpoint: Checkpoint, base: Base) -> dict[str, TokenRows]:
    """Compile `trainable_token_indices` beside any method. Returns site to rows.

    Raises InvalidAdapter.
    """
    return _taken(_ids_by_site(config.tokens, checkpoint, base), checkpoint, base, _BESIDE)


def trained_ids(config: AnyConfig) -> Ids:
    """Return the ids of all tokens whose rows an adapter trains, at whatever module."""
    own = config.fields.integers("token_indices") if isinstance(config, MethodConfig) else ()
    return (*own, *(token for ids in config.auxiliary.tokens.values() for token in ids))


def has_rows(checkpoint: Checkpoint, site: str) -> bool:
    """Return whether the checkpoint has trained rows of an embedding or a head."""
    return any(f"{site}.{beside}{_ROWS}" in checkpoint for beside in ("", _BESIDE))


def _ids_by_site(tokens: Mapping[str, Ids], checkpoint: Checkpoint, base: Base) -> dict[str, Ids]:
    found: dict[str, Ids] = {}
    for end, ids in tokens.items():
        named = [site.name for site in base.table.sites.values() if site.kind in _KINDS and site.name.endswith(end)]
        for name in named if end else [_input_embedding(checkpoint, base, _BESIDE)]:
            if found.setdefault(name, ids) != ids:
                raise InvalidAdapter(f"{name} has two lists of ids", param="trainable_token_indices")
        if end and not named:
            raise InvalidAdapter(
                f"trainable_token_indices names {end[:200]!r}, which is no embedding of this base",
                param="trainable_token_indices",
            )
    return found


def _input_embedding(checkpoint: Checkpoint, base: Base, beside: str) -> str:
    """Return the embedding that has rows in the checkpoint. Raises InvalidAdapter unless there is exactly one."""
    embeddings = [site.name for site in base.table.sites.values() if site.kind is SiteKind.EMBEDDING]
    names = [name for name in embeddings if f"{name}.{beside}{_ROWS}" in checkpoint]
    if len(names) != 1:
        raise InvalidAdapter(
            f"the rows of the trained tokens are missing: one of {listed(embeddings)} must have {beside}{_ROWS}",
            param="files",
        )
    return names[0]


def _taken(ids: Mapping[str, Ids], checkpoint: Checkpoint, base: Base, beside: str) -> dict[str, TokenRows]:
    """Take the rows of each site. PEFT ties a head to its embedding's rows, unless it was given other ids for it.

    beside: a part of the tensors' names. Raises AdapterError.
    """
    sites, head, tied = base.table.sites, base.table.head, base.table.tied_head
    together = tied is not None and head is not None and tied in ids and ids.get(head, ids[tied]) == ids[tied]
    rows = {}
    for name, own in ids.items():
        if together and name == head:
            continue
        if sites[name].kind is SiteKind.HEAD:
            base.require_own_inputs(name, "An adapter of single tokens")
        saved = checkpoint.take(f"{name}.{beside}{_ROWS}")
        checkpoint.find(f"{name}.{beside}{_ORIGINAL}")
        rows[name] = _rows(sites[name], own, saved, base.dtype)
        if together and head is not None and name == tied:
            _check_tied(saved, checkpoint.find(f"{head}.{beside}{_ROWS}"))
            checkpoint.find(f"{head}.{beside}{_ORIGINAL}")
            rows[head] = _rows(sites[head], own, saved, base.dtype)
    return rows


def _check_tied(saved: NamedTensor, again: NamedTensor | None) -> None:
    """Check that a tied pair's rows, which the method by itself saves twice, are equal. Raises InvalidAdapter."""
    if again is not None and not torch.equal(again.tensor, saved.tensor):
        raise InvalidAdapter(f"{again.key} is not {saved.key}, which ties it", param="files")


def _rows(site: Site, ids: Ids, saved: NamedTensor, dtype: torch.dtype) -> TokenRows:
    """Return the rows of one site, in the order of their ids."""
    embeds = site.kind is SiteKind.EMBEDDING
    vocabulary, width = (site.in_features, site.out_features) if embeds else (site.out_features, site.in_features)
    _check_ids(ids, vocabulary)
    saved.require_shape((len(ids), width), f"{len(ids)} tokens at {site.name} take")
    order = torch.tensor(ids).argsort()
    values = saved.converted(dtype, site.embed_scale if embeds else 1.0)
    return TokenRows(torch.tensor(ids, dtype=torch.int32)[order], values[order])


def _check_ids(ids: Ids, vocabulary: int) -> None:
    if not ids or len(set(ids)) < len(ids):
        raise InvalidAdapter("the ids of the trained tokens are none, or not distinct", param="token_indices")
    if max(ids) >= vocabulary:
        raise InvalidAdapter(
            f"token {max(ids)} is trained, but the vocabulary has {vocabulary} tokens", param="token_indices"
        )
