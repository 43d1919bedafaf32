"""AdapterHub's bottleneck adapters (Houlsby, Pfeiffer, parallel, Adapter+) compiled to primitives.

All are `up f(down v + d) + u`, times a scale that is folded into `up` and `u`. The library's place of an adapter is a
module's output here: that of attention's and of feed-forward's last linear, before the residual stream is added.
"""

from collections.abc import Iterator

import torch

from ..errors import InvalidAdapter
from ..peft.base import Base, NamedTensor
from ..peft.tensors import Checkpoint
from ..primitives import Bottleneck, ParallelBottleneck, Primitive
from ..sites import Site, SiteKind
from .bottleneck_config import BottleneckConfig, Form
from .config import HubConfig
from .models import LAYOUTS
from .places import Compiled, numbered_layers, site_of


def compile_bottleneck(part: BottleneckConfig, hub: HubConfig, checkpoint: Checkpoint, base: Base) -> Compiled:
    """Compile a bottleneck adapter. Raises AdapterError."""
    sites = dict(_sites(part, hub, checkpoint, base))
    if not sites:
        raise InvalidAdapter("the adapter is on no module: mh_adapter, output_adapter, leave_out", param="config")
    return Compiled(sites)


def _sites(
    part: BottleneckConfig, hub: HubConfig, checkpoint: Checkpoint, base: Base
) -> Iterator[tuple[str, tuple[Primitive, ...]]]:
    layout = LAYOUTS[hub.model_type]
    wanted = ((part.attention, layout.attention), (part.feed_forward, layout.feed_forward))
    places = [place for is_wanted, place in wanted if is_wanted and place is not None]
    for number, layer in numbered_layers(layout, base, part.leave_out):
        for place in places:
            site = site_of(base, f"{layer}.{place.module}", SiteKind.LINEAR)
            width = part.width(number, site.out_features)
            prefix = f"{layer}.{place.container}.adapters.{hub.name}"
            source = f"{layer}.{place.norm}"
            yield site.name, (_primitive(part, checkpoint, base, site, width, prefix, source),)


def _primitive(
    config: BottleneckConfig, checkpoint: Checkpoint, base: Base, site: Site, width: int, prefix: str, source: str
) -> Primitive:
    features = site.out_features
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
    kind = ParallelBottleneck if config.form is Form.RESIDUAL else Bottleneck
    return kind(*tensors, config.activation, site_of(base, source, SiteKind.NORM).name)


def _scale(scaling: float | str, checkpoint: Checkpoint, prefix: str, features: int) -> torch.Tensor:
    """Return the scale, (1,) or (features,). Raises InvalidAdapter."""
    if not isinstance(scaling, str):
        return torch.tensor([scaling])
    shape = (1,) if scaling == "learned" else (features,)
    return checkpoint.take(f"{prefix}.scaling").require_shape(shape, f"scaling={scaling!r} takes").weights()


def _scaled(weight: NamedTensor, scale: torch.Tensor) -> NamedTensor:
    return weight._replace(tensor=weight.weights() * scale)
