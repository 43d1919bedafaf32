"""The places of AdapterHub's bottlenecks in each kind of model. Knows no torch."""

from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
    """One of the two places in a layer, by names in the layer.

    container: the library's name of its module there. module: the one whose output it changes, the last linear of
    attention or feed-forward. norm: the one whose input is the residual stream that is added to.
    """

    container: str
    module: str
    norm: str


class Layout(NamedTuple):
    """The places in one kind of model.

    layers: the list of layers. hooked: whether the library works through hooks, and leaves the residual to the model.
    """

    layers: str
    attention: Place
    feed_forward: Place
    hooked: bool = False


_LLAMA = Layout(
    "model.layers",
    Place("attention_adapters", "self_attn.o_proj", "input_layernorm"),
    Place("output_adapters", "mlp.down_proj", "post_attention_layernorm"),
)
_GPT2 = Layout(
    "transformer.h",
    Place("attention_adapters", "attn.c_proj", "ln_1"),
    Place("output_adapters", "mlp.c_proj", "ln_2"),
)

LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA._replace(hooked=True),
    "qwen3": _LLAMA._replace(hooked=True),
    "gpt2": _GPT2,
}
