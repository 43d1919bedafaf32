"""The places of AdapterHub's methods in each kind of model. Knows no torch."""

from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
    """One of the two places of a bottleneck in a layer, by names in the layer.

    container: the library's name of its module there. module: the one whose output it changes, the last linear of
    attention or feed-forward. norm: the one whose input is the residual stream that is added to.
    """

    container: str
    module: str
    norm: str


class Linears(NamedTuple):
    """The linears of a layer that LoRA and its relatives are on, by names in the layer.

    attention: letter of a projection (q, k, v) to its linear; or, under all three joined, the one of all of them.
    intermediate, output: where the library puts what its configuration calls so.
    """

    attention: Mapping[str, str]
    intermediate: str
    output: str


class Layout(NamedTuple):
    """The places in one kind of model.

    layers: the list of layers. attention, feed_forward: of bottlenecks; None where they are not served.
    hooked: whether the library works through hooks, and leaves the residual to the model. prefixes: whether it has
    prefix tuning there. positions: the module of learned positions; empty where positions are rotated.
    """

    layers: str
    linears: Linears
    attention: Place | None = None
    feed_forward: Place | None = None
    hooked: bool = False
    prefixes: bool = False
    positions: str = ""


MERGED = "qkv"
_SEPARATE = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}

_LLAMA = Layout(
    "model.layers",
    Linears(_SEPARATE, "mlp.down_proj", "mlp.up_proj"),
    Place("attention_adapters", "self_attn.o_proj", "input_layernorm"),
    Place("output_adapters", "mlp.down_proj", "post_attention_layernorm"),
    prefixes=True,
)
_QWEN = _LLAMA._replace(linears=Linears(_SEPARATE, "mlp.up_proj", "mlp.down_proj"), hooked=True, prefixes=False)
_GEMMA = _QWEN._replace(attention=None, feed_forward=None)
_GPT2 = Layout(
    "transformer.h",
    Linears({MERGED: "attn.c_attn"}, "mlp.c_fc", "mlp.c_proj"),
    Place("attention_adapters", "attn.c_proj", "ln_1"),
    Place("output_adapters", "mlp.c_proj", "ln_2"),
    prefixes=True,
    positions="transformer.wpe",
)

LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "gpt2": _GPT2,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi": _GEMMA._replace(linears=Linears(_SEPARATE, "mlp.fc1", "mlp.fc2")),
}
