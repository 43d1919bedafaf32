"""How the kernel of paged attention is cut into tiles for a layer, and compiled."""

from dataclasses import dataclass
from typing import Any

import torch

from ..layout import AttentionLayer
from ..plan import PlanShape


@dataclass(frozen=True)
class TileConfig:
    """The sizes of a compilation.

    block_m: queries of a tile, 16 or more. block_n: keys at a time. stages: of the loop over keys. programs: on each
    multiprocessor; they need not all be there at once.
    """

    block_m: int
    block_n: int
    warps: int = 4
    stages: int = 2
    programs: int = 2


def tiles_for(layer: AttentionLayer, dtype: torch.dtype, *, wide: bool) -> TileConfig:
    """Return the sizes for a layer. wide: for steps with spans of many rows.

    Narrow tiles hold the query heads of one token, which share its keys. A program takes 32 KiB of keys and values at
    once, or 16 in tiles of many rows: what compiles without spilling registers. Several programs on a multiprocessor
    keep its memory busy while each waits for its own loads.
    """
    width = _power_of_two(_power_of_two(layer.key_dim) + _power_of_two(layer.value_dim)) * dtype.itemsize
    block_m = 64 if wide else max(16, min(64, _power_of_two(layer.group)))
    slim = layer.value_dim <= 128
    if block_m == 16:
        return TileConfig(16, max(16, min(128, (1 << 15) // width)), programs=4 if slim else 2)
    warps = 4 if slim else 8
    return TileConfig(block_m, max(16, min(64, (1 << 14) // width)), warps, programs=8 // warps)


def shape_of(layer: AttentionLayer, tiles: TileConfig, num_programs: int) -> PlanShape:
    return PlanShape(layer.group, layer.kv_heads, layer.reach, tiles.block_m, tiles.block_n, num_programs)


def compile_options(layer: AttentionLayer, tiles: TileConfig, page_size: int, *, writes: bool) -> dict[str, Any]:
    """Return the kernel's constants and the compiler's options.

    writes: for steps whose keys the kernel itself stores.
    """
    return {
        "WRITES": writes,
        "SINKS": layer.sinks,
        "SOFTCAP": layer.softcap,
        "BIASED": layer.biased,
        "WINDOW": layer.window,
        "RESTARTS": layer.restarts,
        "PAGE_SIZE": page_size,
        "GROUP": layer.group,
        "KV_HEADS": layer.kv_heads,
        "KEY_DIM": layer.key_dim,
        "VALUE_DIM": layer.value_dim,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": max(16, _power_of_two(layer.key_dim)),
        "BLOCK_V": max(16, _power_of_two(layer.value_dim)),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "enable_fp_fusion": True,
    }


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not under `number`."""
    return 1 << (number - 1).bit_length()
