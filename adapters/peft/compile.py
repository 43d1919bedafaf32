"""From an adapter's folder to a Bypass: the full check of an adapter, and the only way to serve it.

`methods` names the compiler of each PEFT method, a pure function. What any method can have beside its own tensors
(whole modules, biases, rows of the vocabulary) is compiled by `auxiliary`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..adapterhub.compile import compile_bottleneck
from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..facts import AdapterFacts
from ..files import WEIGHTS, experts_of
from ..primitives import Dense, Replacement
from ..safetensors_header import FLOATING, TensorInfo, read_header
from ..sites import SiteKind, SiteTable
from .auxiliary import compile_auxiliary
from .base import Base
from .config import AdapterHubConfig, AnyConfig, read_config
from .listing import listed
from .methods import METHODS
from .summary import facts_of
from .tensors import Checkpoint

Compiler = Callable[[Any, Checkpoint, Base], Bypass]
"""Compile a configuration and its checkpoint against a base; take every tensor. Raises AdapterError."""

# Integer tensors of the sparse methods: the positions of their values, and their number.
_INTEGERS = re.compile(r"_(indices|size)(_[AB])?\b")


@dataclass(frozen=True)
class CompiledAdapter:
    """A compiled adapter with its facts."""

    bypass: Bypass
    facts: AdapterFacts


def compile_adapter(
    folder: Path,
    table: SiteTable,
    dtype: torch.dtype,
    *,
    max_rank: int = 512,
    model: nn.Module | None = None,
    max_dense_delta: int = 1 << 30,
    task: int = 0,
    runs: bool = True,
) -> CompiledAdapter:
    """Compile the adapter in `folder` against a base. The arguments are those of `Base`. Raises AdapterError."""
    base = Base(table, dtype, max_rank, model, max_dense_delta, task, runs=runs)
    try:
        with ExitStack() as files:
            config = read_config(folder)
            experts = {
                name: (read_config(folder / name), Checkpoint(_open(folder / name, files)))
                for name in experts_of(folder)
            }
            checkpoint = Checkpoint(_open(folder, files), experts)
            bypass = _compile(config, checkpoint, base)
    except OSError as error:
        raise InvalidAdapter(f"the adapter's files cannot be read: {error.strerror}", param="files") from None
    except SafetensorError as error:
        raise InvalidAdapter(f"{WEIGHTS} cannot be read: {error}", param="files") from None
    return CompiledAdapter(bypass, facts_of(bypass, checkpoint.num_tensors, table))


def compiler_of(config: AnyConfig) -> Compiler:
    """Return the function that compiles adapters of this configuration's method."""
    if isinstance(config, AdapterHubConfig):
        return compile_bottleneck
    module, _, function = METHODS[config.peft_type].compiler.rpartition(".")
    compiler: Compiler = getattr(import_module(f".{module}", __package__), function)
    return compiler


def _open(folder: Path, files: ExitStack) -> "_LazyTensors":
    """Open the tensors of a checkpoint, until `files` closes."""
    header = read_header(folder / WEIGHTS)
    _check_types(header)
    return _LazyTensors(header, files.enter_context(safe_open(folder / WEIGHTS, framework="pt", device="cpu")))


def _check_types(header: Mapping[str, TensorInfo]) -> None:
    for key, info in header.items():
        if info.dtype not in FLOATING and not _INTEGERS.search(key):
            raise InvalidAdapter(f"{key} holds {info.dtype}, where weights should be", param="files")


def _compile(config: AnyConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    auxiliary = compile_auxiliary(config.auxiliary, checkpoint, base)
    own = compiler_of(config)(config, checkpoint, auxiliary.seen_by_method(base))
    bypass = auxiliary.joined(own, base)
    if left := checkpoint.left():
        raise InvalidAdapter(f"tensors that the configuration does not put on this base: {listed(left)}", param="files")
    _check_vocabulary(bypass, base.table)
    dense = sum(p.num_bytes for ps in bypass.sites.values() for p in ps if isinstance(p, Dense))
    if dense > base.max_dense_delta:
        raise AdapterTooLarge(
            f"its deltas have full rank and take {dense} bytes, as weights of their own; the server's "
            f"--max-dense-delta is {base.max_dense_delta}",
            param="files",
        )
    return bypass


def _check_vocabulary(bypass: Bypass, table: SiteTable) -> None:
    """Check that the adapter's embedding has every token that its head can generate. Raises InvalidAdapter."""
    if table.head is None or table.head not in table.sites:
        return
    embeddings = [name for name, site in table.sites.items() if site.kind is SiteKind.EMBEDDING]
    said = _most_rows(bypass, [table.head])
    if said > max(table.sites[table.head].out_features, _most_rows(bypass, embeddings)):
        raise InvalidAdapter(
            f"its {table.head} says {said} tokens, and no embedding of its own reads as many: save both, as "
            "save_pretrained(..., save_embedding_layers=True) does",
            param="files",
        )


def _most_rows(bypass: Bypass, sites: Iterable[str]) -> int:
    """Return the most rows of any weight that replaces the base's at these sites; 0 without any."""
    found = (p.weight for site in sites for p in bypass.sites.get(site, ()) if isinstance(p, Replacement))
    return max((len(weight) for weight in found if weight is not None), default=0)


class _LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of an open file, each read when it is asked for."""

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
