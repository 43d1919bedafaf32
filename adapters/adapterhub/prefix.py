"""AdapterHub's prefix tuning (Li and Liang 2021, arXiv:2101.00190), compiled to a KV prefix.

The library puts the prefix before the cache in each layer and counts no positions for it: the prompt begins at position
0, and its keys are as the checkpoint has them, not rotated. Here the prompt begins at position n. Where positions are
rotations, that is the same for keys that are rotated to position n, since scores hang on distances alone. Where they
are learned, rows of their table move by n. Attention is the library's own with a mask, as in training on a batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from ..bypass import KVPrefix
from ..errors import AdapterTooLarge, InvalidAdapter
from ..peft.base import Base, NamedTensor
from ..peft.plain import device_of
from ..peft.prefill import of_tokens
from ..peft.tensors import Checkpoint
from ..peft.unsupported import unsupported
from ..primitives import Primitive, TokenRows
from ..sites import SiteKind
from .config import HubConfig
from .models import LAYOUTS
from .places import Compiled, site_of
from .prefix_config import PrefixConfig

EXCLUSIVE = ("KV prefix",)
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
# Rotations of which a score hangs on the distance alone, at whatever length.
_RELATIVE = ("default", "linear", "llama3", "yarn", "proportional")


def compile_prefix(part: PrefixConfig, hub: HubConfig, checkpoint: Checkpoint, base: Base) -> Compiled:
    """Compile a prefix. Raises AdapterError."""
    model: Any = base.fresh_model("AdapterHub's prefix tuning")
    _refuse_windows(model)
    _refuse_longer(part.length, model)
    layers, heads, dim = _cache_shape(model)
    numbers = _numbers(part, hub, checkpoint, model, layers * 2 * heads * dim)
    pairs = numbers.view(part.length, layers, 2, heads, dim)
    sites, keys = _at_positions(pairs[:, :, 0], hub, model, base)
    cached = {
        i: (
            NamedTensor(f"the keys of layer {i}", keys[:, i]).converted(base.dtype),
            NamedTensor(f"the values of layer {i}", pairs[:, i, 1]).converted(base.dtype),
        )
        for i in range(layers)
    }
    return Compiled(sites, KVPrefix(part.length, cached), EXCLUSIVE)


def _refuse_windows(model: Any) -> None:
    if getattr(model.config, "sliding_window", None) is not None:
        raise unsupported(
            "AdapterHub's prefix tuning on this base",
            "its layers see a window, which the prefix would leave; in that library it never does",
            param="config",
        )


def _refuse_longer(length: int, model: Any) -> None:
    """Raise AdapterTooLarge for a prefix that leaves no position for a prompt."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length >= positions:
        raise AdapterTooLarge(
            f"prefix_length is {length}, and this base has {positions} positions for it and the prompt",
            param="prefix_length",
        )


def _cache_shape(model: Any) -> tuple[int, int, int]:
    """Return layers, kv heads and dim of the base's cache."""
    cache = of_tokens(model, [0]).layers
    _, heads, dim = next(iter(cache.values()))[0].shape
    return len(cache), heads, dim


def _numbers(part: PrefixConfig, hub: HubConfig, checkpoint: Checkpoint, model: Any, width: int) -> torch.Tensor:
    """Return the prefix, (length, width), in float32: of each token layer 0's key, its value, then layer 1's."""

    def take(name: str, *shape: int) -> torch.Tensor:
        return _take(checkpoint, f"prefix_tunings.{hub.name}.self_prefix.{name}", shape)

    if part.hidden is None:
        return take("control_trans", part.length * width).view(part.length, width)
    x = take("wte.weight", part.length, int(model.config.hidden_size))
    hidden = F.linear(
        x, take("control_trans.0.weight", part.hidden, x.shape[1]), take("control_trans.0.bias", part.hidden)
    )
    weight, bias = take("control_trans.2.weight", width, part.hidden), take("control_trans.2.bias", width)
    return F.linear(ACTIVATIONS[part.activation](hidden), weight, bias)


def _take(checkpoint: Checkpoint, ending: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of the prefix, which the library saves once more for each layer. Raises InvalidAdapter."""
    names = [name for name in checkpoint if name.endswith(f".{ending}")]
    if not names:
        checkpoint.take(ending)
    first, *others = [checkpoint.take(name).require_shape(shape, "this prefix on this base takes") for name in names]
    for other in others:
        if not torch.equal(first.tensor, other.tensor):
            raise InvalidAdapter(f"{first.key} and {other.key} are the same tensor, but differ", param="files")
    return first.weights()


def _at_positions(
    keys: torch.Tensor, hub: HubConfig, model: Any, base: Base
) -> tuple[dict[str, tuple[Primitive, ...]], torch.Tensor]:
    """Return what the model's positions need, and the keys, where the prompt begins at position n.

    keys: (n, layers, kv heads, dim).
    """
    table = LAYOUTS[hub.model_type].positions
    if table:
        return {table: (_moved_rows(table, len(keys), base),)}, keys
    return {}, _rotated(keys, model.base_model.rotary_emb)


def _moved_rows(name: str, length: int, base: Base) -> TokenRows:
    """Return the rows of a table of learned positions, moved by the prefix's length."""
    site = site_of(base, name, SiteKind.EMBEDDING)
    weight = base.weight(name, "AdapterHub's prefix tuning").cpu()
    values = NamedTensor(f"the rows of {site.name}", weight[: len(weight) - length])
    return TokenRows(torch.arange(length, len(weight), dtype=torch.int32), values.converted(base.dtype))


def _rotated(keys: torch.Tensor, rotary: Any) -> torch.Tensor:
    """Rotate keys to position n. Raises UnsupportedAdapter where scores hang on more than distances."""
    if rotary.rope_type not in _RELATIVE:
        raise unsupported(
            "AdapterHub's prefix tuning on this base",
            f"its rotations ({rotary.rope_type}) change with the length of the text",
            param="config",
        )
    place = torch.tensor([[len(keys)]], device=device_of(rotary))
    cos, sin = (x[0].cpu() / rotary.attention_scaling for x in rotary(torch.zeros(1, device=place.device), place))
    half = keys.shape[-1] // 2
    rotated: torch.Tensor = keys * cos + torch.cat((-keys[..., half:], keys[..., :half]), dim=-1) * sin
    return rotated
