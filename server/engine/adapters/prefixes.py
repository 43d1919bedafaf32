"""What an adapter's virtual tokens bring, beside what the base keeps: every layer gets its part, or none is served."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from peftserve.adapters.bypass import KVPrefix, StateKey
from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.kernels.attention.layout import AttentionLayer

from ..model.attention import PagedAttention

OfState = tuple[torch.Size, torch.dtype]  # of one sequence's state, without a batch's axis


def prefix_of_base(prefix: KVPrefix, attention: PagedAttention, states: Mapping[StateKey, OfState]) -> KVPrefix:
    """Return a prefix with a part for each layer of the base. Raises UnsupportedAdapter unless it has all of them.

    states: what the base keeps beside keys and values.
    """
    if attention.repeated:
        raise UnsupportedAdapter(
            "virtual tokens are not supported on this base: its layers attend several times for a token, and what each "
            "time reads is not what the adapter has",
            param="peft_type",
        )
    _check_states(prefix, states)
    whole = _for_all_layers(prefix, attention.sources)
    _check_layers(whole, attention.layers)
    return whole


def _for_all_layers(prefix: KVPrefix, sources: Mapping[int, int]) -> KVPrefix:
    """Give layers that read another layer's keys and values (Gemma 3n, Gemma 4) its part of a prefix: here each layer
    has pages of its own.

    sources: of such layers, the one that they read.
    """
    shared = {layer: prefix.layers[source] for layer, source in sources.items() if source in prefix.layers}
    return replace(prefix, layers={**prefix.layers, **shared})


def _check_layers(prefix: KVPrefix, layers: Mapping[int, AttentionLayer]) -> None:
    """Compare a prefix's shapes with those of the base's cache. Raises UnsupportedAdapter where they differ.

    They do where the cache is compressed: it does not hold what attention reads.
    """
    if missing := [str(layer) for layer in layers if layer not in prefix.layers]:
        raise UnsupportedAdapter(
            f"virtual tokens are not supported on this base: they bring no keys and values for layers "
            f"{', '.join(missing)}",
            param="peft_type",
        )
    for index, (keys, values) in prefix.layers.items():
        layer = layers[index]
        brought, read = [
            f"keys of {heads} heads of {key_dim} and values of {value_dim}"
            for heads, key_dim, value_dim in (
                (keys.shape[1], keys.shape[2], values.shape[2]),
                (layer.kv_heads, layer.key_dim, layer.value_dim),
            )
        ]
        if brought != read:
            raise UnsupportedAdapter(
                f"virtual tokens are not supported on this base: its cache holds {brought}, and its attention reads "
                f"{read}, as that of compressed keys and values does",
                param="peft_type",
            )


def _check_states(prefix: KVPrefix, shapes: Mapping[StateKey, OfState]) -> None:
    """Compare what a prefix brings of a recurrent base's state with what the base keeps. Raises UnsupportedAdapter."""
    brought = {key: (state.shape, state.dtype) for key, state in prefix.states.items()}
    if brought != shapes:
        raise UnsupportedAdapter(
            "virtual tokens are not supported on this base: keys and values alone do not say what its recurrent layers "
            "keep of them",
            param="peft_type",
        )
