"""Helpers of the methods on linear layers: their sites, the base's biases, values by pattern, the limit on deltas."""

from collections.abc import Iterable, Mapping

import torch

from ..errors import AdapterTooLarge, UnsupportedAdapter
from ..sites import Site, SiteKind
from .base import Base
from .config import MethodConfig
from .patterns import Deadline, Pattern
from .targets import targeted_sites

LINEARS = frozenset({SiteKind.LINEAR, SiteKind.HEAD})
MATRICES = LINEARS | {SiteKind.EMBEDDING}
ALL_KINDS = frozenset(SiteKind)

_BELOW = r".*\.{}$"


def sites_of(config: MethodConfig, base: Base, kinds: frozenset[SiteKind] = LINEARS) -> list[Site]:
    """Return the targeted sites, without modules that never run.

    Raises InvalidAdapter if there is none, or if one is of another kind.
    """
    assert config.targets is not None
    idle = base.table.uncalled
    names = targeted_sites(config.targets, base.table, base.deadline, kinds=kinds, without=idle)
    return [base.table.sites[name] for name in names]


def own_bias(site: Site, base: Base) -> torch.Tensor | None:
    """Return the base's bias, (out_features,) in float32 on the CPU. Raises UnsupportedAdapter if it is unknown."""
    if base.model is None:
        raise UnsupportedAdapter(
            f"this method needs the base's bias at {site.name}, which is not at hand", param="peft_type"
        )
    bias = base.parameter(site.name, "bias")
    return None if bias is None else bias.to("cpu", torch.float32)


def values_below(
    patterns: Mapping[str, int], default: int, names: Iterable[str], field: str, deadline: Deadline
) -> dict[str, int]:
    """Return name to value as PEFT looks up n_frequency_pattern and block_size_pattern.

    A key is an expression after a dot, or a name in full. Raises InvalidAdapter.
    """
    keys = [(patterns[text], Pattern(text, field, deadline, template=_BELOW)) for text in patterns]
    return {
        name: next((value for value, key in keys if key.match(name)), patterns.get(name, default)) for name in names
    }


def require_room(sites: Iterable[Site], base: Base) -> None:
    """Check, before any is made, that dense deltas of all sites are within the limit. Raises AdapterTooLarge."""
    wanted = sum(site.in_features * site.out_features for site in sites) * base.dtype.itemsize
    if wanted > base.max_dense_delta:
        raise AdapterTooLarge(
            f"its deltas have full rank and would take {wanted} bytes, as weights of their own; the server's "
            f"--max-dense-delta is {base.max_dense_delta}",
            param="files",
        )
