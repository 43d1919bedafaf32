"""A checkpoint's folder to a Bypass: the full check of an adapter, and the only way to serve it.

To serve a new PEFT method is to add its parser to `config` and its compiler here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..bypass import Bypass, LowRank, Primitive
from ..checkpoint import TensorInfo, read_header
from ..errors import InvalidAdapter
from ..facts import AdapterFacts
from ..sites import SiteTable
from ..staging import WEIGHTS
from .base import Base
from .config import LoraConfig, read_config
from .lora import compile_lora

METHODS: Mapping[str, Callable[[LoraConfig, Mapping[str, torch.Tensor], Base], Bypass]] = {"LORA": compile_lora}

PRIMITIVE_NAMES: Mapping[type[Primitive], str] = {LowRank: "low_rank"}


@dataclass(frozen=True)
class CompiledAdapter:
    bypass: Bypass
    facts: AdapterFacts


def compile_adapter(
    folder: Path,
    table: SiteTable,
    dtype: torch.dtype,
    *,
    max_rank: int = 512,
    base_weight: Callable[[str], torch.Tensor | None] | None = None,
) -> CompiledAdapter:
    """Compile the adapter in `folder` against a base. See `Base` for the arguments. Raises AdapterError."""
    base = Base(table, dtype, max_rank, base_weight)
    try:
        config = read_config(folder)
        header = read_header(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, framework="pt", device="cpu") as file:
            bypass = METHODS[config.peft_type](config, _LazyTensors(header, file), base)
    except OSError as error:
        raise InvalidAdapter(f"the adapter's files cannot be read: {error.strerror}", param="files") from None
    except SafetensorError as error:
        raise InvalidAdapter(f"{WEIGHTS} cannot be read: {error}", param="files") from None
    return CompiledAdapter(bypass, _facts(bypass, len(header)))


class _LazyTensors(Mapping[str, torch.Tensor]):
    """Reads a tensor when it is asked for."""

    def __init__(self, header: Mapping[str, TensorInfo], file: Any) -> None:
        self._header = header
        self._file = file

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)


def _facts(bypass: Bypass, num_tensors: int) -> AdapterFacts:
    names = (PRIMITIVE_NAMES[type(primitive)] for primitives in bypass.sites.values() for primitive in primitives)
    return AdapterFacts(
        method=bypass.method,
        rank=bypass.rank,
        num_bytes=bypass.num_bytes,
        primitives=dict(Counter(names)),
        sites=len(bypass.sites),
        consumed=num_tensors,
    )
