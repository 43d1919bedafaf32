"""A run of the base over embeddings, for what its cache then holds. Knows no methods and no checkpoints."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)

from ..bypass import StateKey, StateKind
from ..errors import UnsupportedAdapter
from .plain import device_of

Layer = tuple[torch.Tensor, torch.Tensor]
_FEW = 4  # tokens that tell whether embeddings say all that the base reads
_CLOSE = 1e-3
_KINDS: Mapping[StateKind, str] = {"conv": "conv_states", "recurrent": "recurrent_states"}


class Cached(NamedTuple):
    """What a base keeps behind n tokens, on the CPU.

    layers: layer to keys and values, (n, kv heads, dim) each. states: of its recurrent layers, without a batch's axis.
    """

    layers: dict[int, Layer]
    states: dict[StateKey, torch.Tensor]


class _StatefulCache(DynamicCache):
    """transformers' cache of a recurrent model for one pass, which keeps all keys of sliding layers too."""

    def __init__(self, model: Any) -> None:
        super().__init__(config=model.config)
        self.layers = [_without_window(layer) for layer in self.layers]
        self.linear: dict[int, torch.Tensor] = {}  # by layer; MiniMax keeps its states under this name

    @property
    def keeps_state(self) -> bool:
        return any(hasattr(layer, "conv_states") for layer in self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens there were before the pass: transformers cannot tell without layers of attention."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        return self.linear.get(layer_idx)

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        self.linear[layer_idx] = linear_cache

    def states(self) -> dict[StateKey, torch.Tensor]:
        kept = {
            StateKey(kind, layer, index): _own(state)
            for layer, of_layer in enumerate(self.layers)
            for kind, attribute in _KINDS.items()
            for index, state in getattr(of_layer, attribute, {}).items()
            if state is not None
        }
        return kept | {StateKey("linear", layer, 0): _own(state) for layer, state in self.linear.items()}


def prefill(model: Any, embeddings: torch.Tensor) -> Cached:
    """Run the base over embeddings (n, width) at positions 0 to n - 1. Raises UnsupportedAdapter if it does not run."""
    embeddings = embeddings.to(device_of(model.get_input_embeddings()))[None]
    return _run(model, embeddings.shape[1], embeddings.device, inputs_embeds=embeddings)[1]


def of_tokens(model: Any, token_ids: Sequence[int]) -> Cached:
    """Run the base over tokens at positions from 0 on. Raises UnsupportedAdapter if it does not run."""
    return _over_tokens(model, token_ids)[1]


def needs_token_ids(model: Any) -> bool:
    """Tell whether the base computes otherwise over a few tokens than over their embeddings.

    Raises UnsupportedAdapter if it does not run over embeddings at all.
    """
    table = model.get_input_embeddings()
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    token_ids = [i for i in range(_FEW + 1) if i != padding][:_FEW]
    with torch.inference_mode():
        embeddings = table(torch.tensor(token_ids, device=device_of(table)))[None]
    by_embeddings, _ = _run(model, len(token_ids), embeddings.device, inputs_embeds=embeddings)
    by_ids, _ = _over_tokens(model, token_ids)
    return not torch.allclose(by_ids.float(), by_embeddings.float(), rtol=_CLOSE, atol=_CLOSE)


def counts_otherwise(model: Any) -> bool:
    """Tell whether a base that is given no positions takes others than from 0 on, for embeddings or a token after them.

    PEFT gives none beside virtual tokens. RoBERTa's family begins behind its padding token; Bamba begins anew with each
    token that it generates.
    """
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return False
    table = model.eval().get_input_embeddings()
    ids = torch.arange(_FEW + 1, device=device_of(table))[None]
    embeddings, last = table(ids[:, :_FEW]), ids[:, _FEW:]
    try:
        with torch.inference_mode():
            given, own = (_generated(model, embeddings, last, explicit=explicit) for explicit in (True, False))
    except Exception:  # of whatever a class does that has a cache of its own
        return False
    return not torch.allclose(given, own, rtol=_CLOSE, atol=_CLOSE)


def _generated(model: Any, embeddings: torch.Tensor, token: torch.Tensor, *, explicit: bool) -> torch.Tensor:
    """Return what comes of embeddings and of a token after them, as generation runs them. explicit: give positions."""
    cache, outputs, start = DynamicCache(config=model.config), [], 0
    for inputs in ({"inputs_embeds": embeddings.clone()}, {"input_ids": token}):  # CTRL scales what it is given
        end = start + next(iter(inputs.values())).shape[1]
        positions = {"position_ids": torch.arange(start, end, device=token.device)[None]} if explicit else {}
        outputs.append(model.base_model(**inputs, **positions, past_key_values=cache, use_cache=True)[0])
        start = end
    return torch.cat(outputs, dim=1).float()


def _over_tokens(model: Any, token_ids: Sequence[int]) -> tuple[torch.Tensor, Cached]:
    ids = torch.tensor([list(token_ids)], device=device_of(model.get_input_embeddings()))
    return _run(model, ids.shape[1], ids.device, input_ids=ids)


def _run(model: Any, length: int, device: torch.device, **inputs: Any) -> tuple[torch.Tensor, Cached]:
    """Return the last layer's output, (1, n, width), and what the base keeps. The head does not run."""
    stateful = _stateful_cache(model)
    # Without a configuration it keeps all keys of sliding layers too, whose mask is the base's own.
    cache = inputs["past_key_values"] = stateful or DynamicCache()
    if stateful is None:
        inputs["attention_mask"] = torch.ones(1, length, dtype=torch.int64, device=device)
    try:
        with torch.inference_mode():
            # MiniMax takes no cache but its own, unless it is told to use none.
            hidden = model.eval().base_model(**inputs, use_cache=stateful is None)[0]
    except Exception as error:  # of whatever the class does: some cannot do without token ids
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedAdapter(
            f"virtual tokens are not supported on this base: its class does not run on them ({reason[:200]})",
            param="peft_type",
        ) from error
    layers: Any = cache.layers
    filled = ((i, layer) for i, layer in enumerate(layers) if getattr(layer, "keys", None) is not None)
    kept = {i: (_rows(layer.keys), _rows(layer.values)) for i, layer in filled if layer.keys.numel()}
    states = {} if stateful is None else stateful.states()
    if not kept and not states:
        raise UnsupportedAdapter(
            "virtual tokens are not supported on this base: it keeps no keys and values that they could be ahead of",
            param="peft_type",
        )
    return hidden, Cached(kept, states)


def _stateful_cache(model: Any) -> _StatefulCache | None:
    """Return a cache for a model that keeps more than keys and values; None for others."""
    try:
        cache = _StatefulCache(model)
    except (KeyError, AttributeError, TypeError, ValueError):
        return None  # kinds of layers that transformers' cache does not know
    return cache if cache.keeps_state else None


def _without_window(layer: Any) -> Any:
    if isinstance(layer, LinearAttentionAndSlidingWindowAttentionLayer):
        return LinearAttentionAndFullAttentionLayer(len(layer.conv_states))
    return DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer


def _rows(cached: torch.Tensor) -> torch.Tensor:
    """Return (1, heads, n, dim) as (n, heads, dim), an ordinary tensor again."""
    with torch.inference_mode(False):
        return cached[0].clone().transpose(0, 1).cpu().contiguous()


def _own(state: torch.Tensor) -> torch.Tensor:
    """Return (1, ...) without the axis of the batch, an ordinary tensor again."""
    with torch.inference_mode(False):
        return state[0].clone().cpu().contiguous()
