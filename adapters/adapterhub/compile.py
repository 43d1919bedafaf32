"""AdapterHub's bottleneck adapters (Houlsby, Pfeiffer, parallel, Adapter+) compiled to primitives.

All are `up f(down v + d) + u`, times a scale that is folded into `up` and `u`. The library's place of an adapter is a
module's output here: that of attention's and of feed-forward's last linear, before the residual stream is added.
"""

from collections.abc import Iterator

import torch

from ..bypass import Bypass
from ..errors import InvalidAdapter
from ..peft.base import Base, NamedTensor
from ..peft.config import AdapterHubConfig
from ..peft.tensors import Checkpoint
from ..primitives import Bottleneck, ParallelBottleneck, Primitive
from ..sites import Site, SiteKind
from .config import BottleneckConfig, Form
from .models import LAYOUTS, Place


def compile_bottleneck(config: AdapterHubConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a bottleneck adapter. Raises AdapterError."""
    sites = dict(_sites(config.bottleneck, checkpoint, base))
    if not sites:
        raise InvalidAdapter("the adapter is on no module: mh_adapter, output_adapter, leave_out", param="config")
    return Bypass(config.peft_type, sites)


def _sites(config: BottleneckConfig, checkpoint: Checkpoint, base: Base) -> Iterator[tuple[str, tuple[Primitive]]]:
    layout = LAYOUTS[config.model_type]
    wanted = ((config.attention, layout.attention), (config.feed_forward, layout.feed_forward))
    places = [place for is_wanted, place in wanted if is_wanted]
    for number in range(_num_layers(layout.layers, base)):
        for place in places if number not in config.leave_out else ():
            layer = f"{layout.layers}.{number}"
            site = _site(base, f"{layer}.{place.module}", SiteKind.LINEAR)
            yield site.name, (_primitive(config, checkpoint, base, site, layer, number, place),)


def _num_layers(layers: str, base: Base) -> int:
    names = (name.removeprefix(f"{layers}.") for name in base.table.sites if name.startswith(f"{layers}."))
    numbers = {name.partition(".")[0] for name in names}
    if not numbers:
        raise InvalidAdapter(f"the adapter is for a base with {layers}, which this one lacks", param="model_type")
    return len(numbers)


def _site(base: Base, name: str, kind: SiteKind) -> Site:
    site = base.table.sites.get(name)
    if site is None or site.kind is not kind:
        raise InvalidAdapter(f"the adapter is for a base with {name}, which this one lacks", param="model_type")
    return site


def _primitive(
    config: BottleneckConfig, checkpoint: Checkpoint, base: Base, site: Site, layer: str, number: int, place: Place
) -> Primitive:
    width, features = config.width(number, site.out_features), site.out_features
    prefix = f"{layer}.{place.container}.adapters.{config.name}"
    why = f"a bottleneck of {width} on {site.name} takes"
    down = checkpoint.take(f"{prefix}.adapter_down.0.weight").require_shape((width, features), why)
    down_bias = checkpoint.take(f"{prefix}.adapter_down.0.bias").require_shape((width,), why)
    up = checkpoint.take(f"{prefix}.adapter_up.weight").require_shape((features, width), why)
    up_bias = checkpoint.take(f"{prefix}.adapter_up.bias").require_shape((features,), why)
    scale = _scale(config.scaling, checkpoint, prefix, features)
    tensors = (
        down.converted(base.dtype),
        down_bias.converted(base.dtype),
        _scaled(up, scale[:, None]).converted(base.dtype),
        _scaled(up_bias, scale).converted(base.dtype),
    )
    if config.form is Form.OUTPUT:
        return Bottleneck(*tensors, config.activation)
    source = _site(base, f"{layer}.{place.norm}", SiteKind.NORM).name
    kind = ParallelBottleneck if config.form is Form.RESIDUAL else Bottleneck
    return kind(*tensors, config.activation, source)


def _scale(scaling: float | str, checkpoint: Checkpoint, prefix: str, features: int) -> torch.Tensor:
    """Return the scale, (1,) or (features,). Raises InvalidAdapter."""
    if not isinstance(scaling, str):
        return torch.tensor([scaling])
    shape = (1,) if scaling == "learned" else (features,)
    return checkpoint.take(f"{prefix}.scaling").require_shape(shape, f"scaling={scaling!r} takes").weights()


def _scaled(weight: NamedTensor, scale: torch.Tensor) -> NamedTensor:
    return weight._replace(tensor=weight.weights() * scale)
