"""A block for the log that says how memory is divided once the engine has started."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from peftserve.adapters.peft.twin import tensors_of
from peftserve.kernels.bypass.layout import Group

from ..config import EngineConfig
from .adapters.service import AdapterService
from .adapters.sizing import linear_groups, lora_bytes
from .assembly import COPIED_SHARE
from .memory import StateSlots, free_bytes
from .model.kv_cache import elements_per_token
from .model.loading import LoadedModel
from .staging import is_host

SHOWN_RANKS = (16, 64)  # beside the largest one that is taken
_UNITS = ("KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class MemoryReport:
    """What takes memory for as long as the engine runs. All sizes are in bytes.

    device: where all of it is but for `host`. base: the model's weights, with spare columns behind them.
    packed: second copies of weights, in the layout that this processor multiplies fastest. kv: the KV cache.
    copied: at most, what a CPU keeps once more of sequences that decode together.
    states: what a recurrent model keeps, of sequences that run and in snapshots. slots: how many of each.
    fitting: pairs of a rank and how many LoRAs of that rank at all linears the arena holds, at most `max_loras`.
    scratch: what the kernels of bypasses keep between steps; 0 where they keep nothing.
    host: most bytes of compiled adapters off the device. free: what can still be allocated.
    """

    device: str
    base: int
    packed: int
    kv: int
    copied: int
    kv_pages: int
    page_size: int
    states: int
    slots: StateSlots
    arena: int
    fitting: Sequence[tuple[int, int]]
    max_loras: int
    scratch: int
    host: int
    free: int

    def __str__(self) -> str:
        fits = ", ".join(f"{count} of rank {rank}" for rank, count in self.fitting)
        rows = [
            ("base model", self.base, ""),
            ("packed weights", self.packed, "second copies in a faster layout"),
            ("KV cache", self.kv, f"{self.kv_pages * self.page_size} tokens in {self.kv_pages} pages"),
            ("copied keys, values", self.copied, "of sequences that decode together, at most"),
            ("states", self.states, f"of {self.slots.sequences} sequences and {self.slots.snapshots} snapshots"),
            ("adapters", self.arena, f"{self.max_loras} at once; LoRAs at all linears: {fits}"),
            ("bypass scratch", self.scratch, "of the kernels"),
            ("free", self.free, "for steps, and for others"),
            ("adapters off the device", self.host, "in host memory, at most"),
        ]
        lines = [f"  {name:<24}{show_bytes(size):>10}  {about}".rstrip() for name, size, about in rows if size]
        return "\n".join([f"Memory on {self.device}", *lines])


def describe_memory(
    config: EngineConfig,
    loaded: LoadedModel,
    adapters: AdapterService,
    *,
    packed: int,
    num_pages: int,
    slots: StateSlots,
) -> MemoryReport:
    """Return how an engine that has just started has divided memory.

    packed: bytes of second copies of weights. slots: of state.
    """
    linears = linear_groups(loaded.sites.groups, loaded.sites.table)
    per_token = sum(map(elements_per_token, loaded.attention.layers.values())) * loaded.dtype.itemsize
    kv = num_pages * config.page_size * per_token
    return MemoryReport(
        device=str(loaded.device),
        base=model_bytes(loaded.model),
        packed=packed,
        kv=kv,
        copied=int(kv * COPIED_SHARE) if is_host(loaded.device) else 0,
        kv_pages=num_pages,
        page_size=config.page_size,
        states=(sum(slots) + 1) * loaded.states.bytes_per_sequence,
        slots=slots,
        arena=adapters.arena_bytes,
        fitting=fitting_loras(adapters.arena_bytes, linears, config.max_lora_rank, config.max_loras, loaded.dtype),
        max_loras=config.max_loras,
        scratch=adapters.scratch_bytes,
        host=config.host_adapter_memory,
        free=free_bytes(loaded.device),
    )


def show_bytes(size: int) -> str:
    """Return a size with three digits or so, in the unit that fits it."""
    amount, unit = size / 1024, _UNITS[0]
    for larger in _UNITS[1:]:
        if amount < 1000:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}"


def fitting_loras(
    arena: int, groups: Sequence[Group], max_rank: int, max_loras: int, dtype: torch.dtype
) -> list[tuple[int, int]]:
    """Return, for some ranks up to `max_rank`, how many LoRAs of that rank at all linears `arena` bytes hold."""
    ranks = [*(rank for rank in SHOWN_RANKS if rank < max_rank), max_rank]
    sizes = [(rank, lora_bytes(groups, rank, dtype)) for rank in ranks]
    return [(rank, min(arena // size, max_loras)) for rank, size in sizes if size]


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of all that a model's modules hold, what shares memory once."""
    return storage_bytes(tensors_of(model))


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the memory that these tensors are views of, each piece once."""
    return sum(dict(_memory(plain) for tensor in tensors for plain in _plain(tensor)).values())


def _memory(tensor: torch.Tensor) -> tuple[tuple[bool, int], int]:
    """Return what tells a tensor's memory from others', and its bytes."""
    if tensor.is_mkldnn:  # whose storage oneDNN keeps to itself
        return (True, id(tensor)), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return (False, storage.data_ptr()), storage.nbytes()


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors that one is made of: quantised weights are numbers and scales."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _plain(getattr(tensor, name))
