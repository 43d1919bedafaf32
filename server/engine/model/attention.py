"""Paged attention behind transformers' AttentionInterface.

One object is what the layers of a model reach, because it is registered as their attention function; it holds the cache
and the backend, which the runner tells of each step before the forward pass. The keys and values that a span of several
rows brings to a layer are written before any are read, so sequences of one step may share the pages that it fills.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface

from peftserve.kernels.attention.layout import AttentionBackend, AttentionLayer
from peftserve.kernels.attention.torch.masked import Prefill, attend_prefill

from .callouts import Call, call_out
from .errors import UnservableModel
from .kv_cache import KVCache

_names = itertools.count()
_UNSERVED = ("position_bias", "head_mask")  # attention inputs that would change the result


class SideKeys(Protocol):
    """Keys and values of one layer that lie beside the cache and are seen by every row.

    keys, values: (length, kv heads, dim). scale: what scores are multiplied by.
    """

    @property
    def keys(self) -> torch.Tensor: ...
    @property
    def values(self) -> torch.Tensor: ...
    @property
    def scale(self) -> float: ...


class SideRows(NamedTuple):
    """Rows [begin, end) of a step that attend to side keys as well, by a softmax of its own.

    weight: of the result in the output. layers: side keys by layer index.
    """

    begin: int
    end: int
    weight: float
    layers: Mapping[int, SideKeys]

    def add_(self, layer: int, query: torch.Tensor, out: torch.Tensor) -> None:
        """Add one layer's side attention to the rows' output.

        query: (heads, tokens, dim) of the whole step. out: (tokens, heads, value dim), changed in place.
        """
        if (side := self.layers.get(layer)) is None:
            return
        heads, kv_heads = query.shape[0], side.keys.shape[1]
        rows = query[:, self.begin : self.end].unflatten(0, (kv_heads, heads // kv_heads)).flatten(1, 2)
        scores = rows @ side.keys.permute(1, 2, 0) * side.scale
        result = scores.softmax(-1, dtype=torch.float32).to(rows.dtype) @ side.values.transpose(0, 1)
        result = result.view(heads, self.end - self.begin, -1).transpose(0, 1)
        out[self.begin : self.end].add_(result, alpha=self.weight)


class PagedAttention:
    """The attention function of one model.

    Until it is connected it computes plain causal attention over what it is given, and notes what each layer is like
    in `layers`, by its index.
    """

    def __init__(self) -> None:
        self.name = f"peftserve_{next(_names)}"
        self.layers: dict[int, AttentionLayer] = {}
        self.side: Sequence[SideRows] = ()  # the step's
        self._cache: KVCache | None = None
        self._backend: AttentionBackend | None = None
        self._places: dict[int, int] = {}
        AttentionInterface.register(self.name, self)

    def connect(self, cache: KVCache, backend: AttentionBackend) -> None:
        """Attend to `cache` from now on, by a backend that was made for `layers`, in their order."""
        self._cache, self._backend = cache, backend
        self._places = {layer: place for place, layer in enumerate(self.layers)}

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute one layer's attention, called as transformers' interface calls it. Returns (1, tokens, heads, dim).

        query: (1, heads, tokens, dim). key, value: (1, kv heads, tokens, dim). s_aux: (heads,), the sinks' logits.
        Raises UnservableModel, before a cache is connected, if the layer uses an input that is not supported.
        """
        index = _index_of(module)
        if self._backend is None or self._cache is None:
            for name in _UNSERVED:
                if kwargs.get(name) is not None:
                    raise UnservableModel(f"its attention uses `{name}`, which paged attention here does not support")
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            layer = self._note(index, query, key, value, (scale, sliding_window, softcap, s_aux is not None))
            rows = Prefill(0, query.shape[2], 0, torch.empty(0))
            return attend_prefill(rows, query[0], key, value, layer, s_aux).transpose(0, 1)[None], None
        sinks = () if s_aux is None else (s_aux,)
        return call_out(Call(module, self._attend, _like), query, key, value, *sinks), None

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert self._cache is not None
        assert self._backend is not None
        index = _index_of(module)
        keys, values = self._cache.keys[index], self._cache.values[index]
        out = self._backend.attend(self._places[index], query, key, value, keys, values, sinks)
        for rows_beside in self.side:
            rows_beside.add_(index, query[0], out)
        return out[None]

    def _note(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: tuple[Any, ...]
    ) -> AttentionLayer:
        if index in self.layers:
            raise UnservableModel(f"two attention modules share layer index {index}")
        heads, kv_heads = query.shape[1], key.shape[1]
        self.layers[index] = AttentionLayer(heads, kv_heads, key.shape[3], value.shape[3], *scoring)
        return self.layers[index]


def _like(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: torch.Tensor
) -> torch.Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def _index_of(module: torch.nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnservableModel(f"{type(module).__name__} has no layer index")
    return layer
