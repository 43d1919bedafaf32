"""Paged attention behind transformers' AttentionInterface.

One object is what the layers of a model reach, because it is registered as their attention function; it holds the cache
and the backend, which the runner tells of each step before the forward pass. The keys and values that a span of several
rows brings to a layer are written before any are read, so sequences of one step may share the pages that it fills.
"""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface

from peftserve.kernels.attention.layout import AttentionBackend, AttentionLayer, Reach
from peftserve.kernels.attention.torch.masked import Prefill, attend_prefill

from .callouts import Call, call_out
from .errors import UnservableModel
from .kv_cache import KVCache
from .state.joining import Joint
from .traced_masks import TracedMasks

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
    in `layers`, by its index; where an index calls several times in a pass (DiffLlama attends twice in a layer, HRM
    runs its layers in cycles), each call has keys and values of its own, and a negative number after the first. name:
    under which a model's attention is this; `masks.name` in traced passes, in which the model also makes the masks
    that say what each layer sees.
    """

    def __init__(self) -> None:
        self.name = f"peftserve_{next(_names)}"
        self.layers: dict[int, AttentionLayer] = {}
        self.repeated: dict[int, list[int]] = {}  # by index, the numbers of its calls in a pass
        self.sources: dict[int, int] = {}  # of layers that are given another layer's keys and values, that layer
        self._noted: dict[int, torch.Tensor] = {}  # keys by index, in a pass that notes layers
        self._called: dict[int, int] = {}  # how often, by index, in the pass that runs
        self.side: Sequence[SideRows] = ()  # the step's
        self.joint = Joint()
        self._cache: KVCache | None = None
        self._backend: AttentionBackend | None = None
        self._places: dict[int, int] = {}
        self.masks = TracedMasks(f"{self.name}_traced")
        for name in (self.name, self.masks.name):
            AttentionInterface.register(name, self)

    def forget(self) -> None:
        """Forget the layers that were noted, before a pass that notes them anew."""
        self.layers.clear()
        self.repeated.clear()
        self.sources.clear()
        self._noted.clear()
        self.begin()

    def begin(self) -> None:
        """Begin a pass."""
        self._called.clear()

    def connect(self, cache: KVCache, backend: AttentionBackend) -> None:
        """Attend to `cache` from now on, by a backend that was made for `layers`, in their order."""
        self._noted.clear()
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
        bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute one layer's attention, called as transformers' interface calls it. Returns (1, tokens, heads, dim).

        query: (1, heads, tokens, dim). key, value: (1, kv heads, tokens, dim). s_aux: (heads,), the sinks' logits.
        bias: (heads, positions) float32, what is added to the scores of each key, for all positions.
        Raises UnservableModel, before a cache is connected, if the layer uses an input that is not supported.
        """
        if self._backend is None or self._cache is None:
            for name in _UNSERVED:
                if kwargs.get(name) is not None:
                    raise UnservableModel(f"its attention uses `{name}`, which paged attention here does not support")
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            reach = self.masks.reach(attention_mask) or Reach(sliding_window)
            scoring = (scale, reach.window, softcap, s_aux is not None, reach.restarts, bias is not None)
            layer = self._note(_index_of(module), query, key, value, scoring)
            rows = Prefill(0, query.shape[2], 0, torch.empty(0))
            out = attend_prefill(rows, query[0], key, value, layer, s_aux, bias)
            return out.transpose(0, 1).contiguous()[None], None
        extras = [extra for extra in (s_aux, bias) if extra is not None]
        if query.shape[0] == 1 and not self.joint.active:
            return call_out(Call(module, self._attend, _like), query, key, value, *extras), None
        return self._of_part(module, query, key, value, *extras), None

    def _of_part(self, module: torch.nn.Module, *tensors: torch.Tensor) -> torch.Tensor:
        """Attend from within a module that runs a step in parts. Returns a part's (sequences, tokens, heads, dim)."""
        query, key, value, *extras = tensors

        def attend(*whole: torch.Tensor) -> torch.Tensor:
            return self._attend(module, *(each.transpose(1, 2) for each in whole), *extras)

        by_token = [each.transpose(1, 2) for each in (query, key, value)]
        if self.joint.active:
            return self.joint.call(module, attend, *by_token)
        count, length = by_token[0].shape[:2]
        out = attend(*(each.reshape(1, -1, *each.shape[2:]) for each in by_token))
        return out.view(count, length, *out.shape[2:])

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *extras: torch.Tensor,
    ) -> torch.Tensor:
        """extras: the sinks and the bias, if the layer has them."""
        assert self._cache is not None
        assert self._backend is not None
        index = self._number(_index_of(module))
        keys, values = self._cache.keys[index], self._cache.values[index]
        layer, rest = self.layers[index], iter(extras)
        sinks, bias = (next(rest) if has else None for has in (layer.sinks, layer.biased))
        out = self._backend.attend(self._places[index], query, key, value, keys, values, sinks, bias)
        for rows_beside in self.side:
            rows_beside.add_(index, query[0], out)
        return out[None]

    def _note(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: tuple[Any, ...]
    ) -> AttentionLayer:
        if index in self.layers:
            numbers = self.repeated.setdefault(index, [index])
            index = -1 - sum(len(others) - 1 for others in self.repeated.values())
            numbers.append(index)
        if (source := next((i for i, other in self._noted.items() if other is key), None)) is not None:
            self.sources[index] = source
        self._noted.setdefault(index, key)
        heads, kv_heads = query.shape[1], key.shape[1]
        self.layers[index] = AttentionLayer(heads, kv_heads, key.shape[3], value.shape[3], *scoring)
        return self.layers[index]

    def _number(self, index: int) -> int:
        """Return the number of the call that a layer of this index makes now, by the order of the calls in a pass."""
        if (numbers := self.repeated.get(index)) is None:
            return index
        place = self._called[index] = self._called.get(index, -1) + 1
        return numbers[place]


def _like(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: torch.Tensor
) -> torch.Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def index_by_call(model: torch.nn.Module) -> None:
    """Give attention modules that several layers share the index of the layer that calls them, which it tells them."""
    for module in model.modules():
        index = getattr(module, "layer_idx", 0)
        parameters = [*inspect.signature(module.forward).parameters]
        if (index is None or index < 0) and "layer_idx" in parameters:
            module.register_forward_pre_hook(partial(_take_index, parameters.index("layer_idx")), with_kwargs=True)


def _take_index(position: int, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    index: Any = args[position] if position < len(args) else kwargs.get("layer_idx")
    module.layer_idx = index


def _index_of(module: torch.nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int) or layer < 0:
        raise UnservableModel(f"{type(module).__name__} has no layer index")
    return layer
