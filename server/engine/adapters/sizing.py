"""The room that adapters take, from which the arena's size follows where the operator gives none."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.files import WEIGHTS
from peftserve.adapters.safetensors_header import read_header
from peftserve.adapters.sites import SiteKind, SiteTable
from peftserve.kernels.bypass.layout import Group
from peftserve.kernels.integers import round_up

from .packing import ALIGNMENT, SiteGroups

logger = logging.getLogger(__name__)

SHARE = 0.1  # of the free memory, for all adapters
LARGEST_SHARE = 0.5  # of the free memory, for one that is registered and would not be served otherwise
LEAST_BYTES = 64 << 20  # adapters of other methods may take more than the largest LoRA


def linear_groups(sites: SiteGroups, table: SiteTable) -> list[Group]:
    """Return the groups of the model's linears: what `all-linear` means in PEFT, without the output head."""
    linear = {group for name, (group, _) in sites.places.items() if table.sites[name].kind is SiteKind.LINEAR}
    return [sites.groups[index] for index in sorted(linear)]


def lora_bytes(groups: Sequence[Group], rank: int, dtype: torch.dtype) -> int:
    """Return the bytes of the blob of a LoRA of `rank` at all sites of `groups`, as `pack` lays it out."""
    sizes = [rank * len(group.out_features) * group.in_features for group in groups]
    sizes += [rank * width for group in groups for width in group.out_features]
    return sum(round_up(size, ALIGNMENT) for size in sizes) * dtype.itemsize


def largest_stored_bytes(store: Path | None, dtype: torch.dtype) -> int:
    """Return the bytes that the numbers of the largest adapter in a store take as `dtype`; 0 without any.

    Reads the header of one file. store: folder of adapters' folders, which need not be there.
    """
    files = [] if store is None else list(store.glob(f"*/{WEIGHTS}"))
    if not files:
        return 0
    largest = max(files, key=lambda file: file.stat().st_size)
    try:
        return sum(math.prod(tensor.shape) for tensor in read_header(largest).values()) * dtype.itemsize
    except (AdapterError, OSError) as error:
        logger.warning("the size of the largest adapter could not be read, so no room is kept for it: %s", error)
        return 0


def arena_bytes(asked: int | None, *, lora: int, stored: int, max_loras: int, free: int) -> int:
    """Return the bytes to set aside for adapters on the device.

    asked: by the operator, who gets just that. lora: of one LoRA of the largest rank at all linears. stored: of the
    largest adapter that is registered. free: bytes that can be allocated.

    Without `asked`, room for `max_loras` of the larger of the two, as far as SHARE of the free memory goes; an adapter
    that is registered and larger than that gets room for itself, up to LARGEST_SHARE.
    """
    if asked is not None:
        return asked
    wanted = max(max_loras * max(lora, stored), LEAST_BYTES)
    return min(wanted, max(int(free * SHARE), min(stored, int(free * LARGEST_SHARE))))
