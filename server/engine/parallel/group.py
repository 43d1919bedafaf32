"""The ranks of one model and what they compute together. Knows no model and no messages."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from ..model.errors import UnservableModel
from .place import Place

PATIENCE = timedelta(hours=1)  # for a rank that loads a large model; one that dies is noticed at once


class RankGroup:
    """This process as one of the ranks. Every rank calls the same methods in the same order."""

    def __init__(self, place: Place, device: torch.device) -> None:
        """Meet the others. Waits until all have come."""
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
        self.rank = place.rank
        self.size = place.size
        self.device = device
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{place.meeting}",
            rank=place.rank,
            world_size=place.size,
            timeout=PATIENCE,
        )

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of all ranks' tensors, in place where the tensor is contiguous."""
        whole = tensor.contiguous()
        if whole.numel():  # a step may have no rows that reach the head
            dist.all_reduce(whole)
        return whole

    def of_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the first rank's tensor."""
        theirs = tensor.clone(memory_format=torch.contiguous_format)
        if theirs.numel():
            dist.broadcast(theirs, src=0)
        return theirs

    def beside(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all ranks' tensors (..., width) side by side, in the order of the ranks."""
        if not tensor.numel():
            return tensor.new_empty(*tensor.shape[:-1], tensor.shape[-1] * self.size)
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, -1)

    def least(self, value: int) -> int:
        """Return the least of all ranks' numbers."""
        number = torch.tensor([value], device=self.device)
        dist.all_reduce(number, op=dist.ReduceOp.MIN)
        return int(number.item())

    def leave(self) -> None:
        dist.destroy_process_group()


def device_of_rank(device: torch.device, place: Place) -> torch.device:
    """Return the device of a rank. device: what was chosen for all. Raises UnservableModel if there are too few."""
    if device.type != "cuda":
        return device
    if (count := torch.cuda.device_count()) < place.size:
        raise UnservableModel(f"--tensor-parallel-size {place.size} needs as many GPUs, and torch sees {count}")
    own = torch.device("cuda", place.rank)
    torch.cuda.set_device(own)
    return own
