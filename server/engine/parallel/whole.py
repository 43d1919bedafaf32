"""The whole base, which compilers of adapters read, without memory for it on each rank: in files that all ranks map.

What transformers took from the checkpoint as it is, is mapped from there. What it converted, to another type or into
stacked experts, the first rank writes to a file of the state folder, once for all ranks.
"""

import logging
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn

from peftserve.adapters.peft.plain import is_plain
from peftserve.kernels.integers import round_up

from ..memory import let_go_of_files, mapped_ranges
from .group import RankGroup

logger = logging.getLogger(__name__)

CHECKPOINT = ".safetensors"
CONVERTED = ".converted"
PAGE = 4096  # bytes, at whose multiples tensors begin
SMALL = 1 << 16  # bytes of a tensor that is left where it is


def keep_in_files(whole: nn.Module, group: RankGroup, folder: Path) -> None:
    """Map the weights of a whole model that are in memory from a file, the same on all ranks, and let all pages go.

    whole: on the CPU, with the same weights on every rank; nothing else may hold them. Where the disk has no room, they
    stay in memory.
    """
    loose = list(_loose(whole))
    starts = [0, *accumulate(round_up(tensor.nbytes, PAGE) for tensor in loose)]
    file = folder / f"weights{CONVERTED}"
    if loose and _written(file, loose, starts, group):
        mapped = torch.from_file(str(file), shared=False, size=starts[-1], dtype=torch.uint8)
        for tensor, start in zip(loose, starts, strict=False):
            tensor.data = mapped[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        group.least(0)  # all have it open
        if group.rank == 0:
            file.unlink()
    for suffix in (CHECKPOINT, CONVERTED):
        let_go_of_files(suffix)


def _loose(whole: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the plain parameters that are in memory, and not mapped from a checkpoint."""
    ranges = mapped_ranges(CHECKPOINT)
    for parameter in whole.parameters():
        is_mapped = any(start <= parameter.data_ptr() < end for start, end in ranges)
        if is_plain(parameter) and not is_mapped and parameter.nbytes >= SMALL:
            yield parameter


def _written(file: Path, tensors: list[torch.Tensor], starts: list[int], group: RankGroup) -> bool:
    """Let the first rank write the tensors. Returns whether all of them are there."""
    done = True
    if group.rank == 0:
        try:
            _write(file, tensors, starts)
        except OSError as error:
            logger.warning("each rank holds %d bytes of converted weights in memory: %s", starts[-1], error)
            file.unlink(missing_ok=True)
            done = False
    return bool(group.least(int(done)))


def _write(file: Path, tensors: list[torch.Tensor], starts: list[int]) -> None:
    with file.open("wb") as out:
        for tensor, start in zip(tensors, starts, strict=False):
            out.seek(start)
            out.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        out.truncate(starts[-1])
