"""What the compilers of AdapterHub's methods have in common: their result, and how they find modules of the base."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from ..bypass import KVPrefix
from ..errors import InvalidAdapter
from ..peft.base import Base
from ..primitives import Primitive
from ..sites import Site, SiteKind
from .models import Layout


class Compiled(NamedTuple):
    """One part of an adapter: the fields of a `Bypass` that it has."""

    sites: Mapping[str, tuple[Primitive, ...]]
    prefix: KVPrefix | None = None
    exclusive: tuple[str, ...] = ()


def numbered_layers(layout: Layout, base: Base, leave_out: Collection[int] = ()) -> list[tuple[int, str]]:
    """Return number and name of each layer that is not left out. Raises InvalidAdapter where the base has none."""
    names = (
        name.removeprefix(f"{layout.layers}.") for name in base.table.sites if name.startswith(f"{layout.layers}.")
    )
    numbers = {name.partition(".")[0] for name in names}
    if not numbers:
        raise InvalidAdapter(
            f"the adapter is for a base with {layout.layers}, which this one lacks", param="model_type"
        )
    return [(number, f"{layout.layers}.{number}") for number in range(len(numbers)) if number not in leave_out]


def site_of(base: Base, name: str, kind: SiteKind) -> Site:
    """Return the site of this name and kind. Raises InvalidAdapter where the base has none."""
    site = base.table.sites.get(name)
    if site is None or site.kind is not kind:
        raise InvalidAdapter(f"the adapter is for a base with {name}, which this one lacks", param="model_type")
    return site
