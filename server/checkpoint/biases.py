"""Biases that adapters bring to modules without one: whether the architecture's configuration has a field for them."""

from collections.abc import Collection, Iterator
from typing import Any

from transformers import PreTrainedConfig

from peftserve.adapters.peft.listing import listed

from .bases import MergeBase
from .errors import MergeRefused
from .private.transformers_private import own_tensors
from .skeleton import changed, skeleton


def fields_for_biases(
    base: MergeBase, wanted: Collection[str], trust_remote_code: bool
) -> tuple[list[str], dict[str, Any]]:
    """Return all tensors that a configuration with these biases has more, and the fields that make it so.

    wanted: names of tensors. Raises MergeRefused if no field of the configuration gives one of them.
    """
    gained: dict[str, None] = {}
    fields: dict[str, Any] = {}
    left = set(wanted)
    for field in _switches(base.config) if wanted else ():
        more = _gained(base, {**fields, field: True}, trust_remote_code)
        if left & more:
            fields[field] = True
            gained |= dict.fromkeys(sorted(more))
            left -= more
    if left:
        raise MergeRefused(
            f"an adapter adds a bias to {listed(sorted(name.removesuffix('.bias') for name in left))}, which has none, "
            f"and the configuration of a {base.config.model_type} has no field for it; serve it unmerged, with "
            "peftserve serve"
        )
    return list(gained), fields


def _switches(config: PreTrainedConfig) -> Iterator[str]:
    """Yield the fields of a configuration that are off and speak of biases."""
    values = config.get_text_config().to_dict()
    yield from (name for name, value in values.items() if value is False and "bias" in name)


def _gained(base: MergeBase, fields: dict[str, Any], trust_remote_code: bool) -> set[str]:
    """Return the tensors that a configuration with these fields has more; none if any is not a bias, or one lacks."""
    try:
        other = own_tensors(skeleton(changed(base.config, fields), trust_remote_code))
    except MergeRefused:
        return set()
    more = other.keys() - base.own.keys()
    only_biases = all(name.endswith(".bias") for name in more) and base.own.keys() <= other.keys()
    return set(more) if only_biases else set()
