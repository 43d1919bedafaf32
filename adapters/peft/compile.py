"""From an adapter's folder to a Bypass: the full check of an adapter, and the only way to serve it.

`methods` names the compiler of each PEFT method, a pure function. What any method can have beside its own tensors
(whole modules, biases, rows of the vocabulary) is compiled by `auxiliary`.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..adapterhub.compile import compile_adapterhub
from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..facts import AdapterFacts
from ..files import WEIGHTS, experts_of, read_raw_config
from ..primitives import Dense
from ..safetensors_header import CAST, FLOATING, TensorInfo, read_header
from ..sites import SiteTable
from .auxiliary import compile_auxiliary
from .base import Base
from .config import AdapterHubConfig, AnyConfig, LoraConfig, notes_on_fields, parse_config, read_config
from .keys import PREFIX
from .listing import listed
from .methods import METHODS
from .naming import naming_of
from .saved_modules import note_on_modules
from .summary import facts_of
from .target_parameters import note_on_parameters
from .tensors import Checkpoint, LazyTensors, is_idle
from .unread import for_text, set_aside, without_read
from .vocabulary import as_trained, fitted
from .wrappers import unwrapped

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
    """Compile the adapter in `folder` against a base. The arguments are those of `Base`.

    Raises AdapterError; OSError where the machine cannot read its files.
    """
    base = Base(table, dtype, max_rank, model, max_dense_delta, task, runs=runs)
    try:
        with ExitStack() as files:
            raw = read_raw_config(folder)
            config = parse_config(raw)
            experts = {
                name: (read_config(folder / name), Checkpoint(_open(folder / name, files, table)))
                for name in experts_of(folder)
            }
            checkpoint = Checkpoint(_open(folder, files, table), experts, prefix=prefix_of(config))
            bypass, unused, ignored = _compile(config, checkpoint, base)
            notes = (*notes_on_fields(raw), *ignored, *checkpoint.notes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidAdapter(f"the adapter's files cannot be read: {error.strerror}", param="files") from None
    except SafetensorError as error:
        raise InvalidAdapter(f"{WEIGHTS} cannot be read: {error}", param="files") from None
    return CompiledAdapter(bypass, facts_of(bypass, checkpoint.num_tensors, notes, unused))


def compiler_of(config: AnyConfig) -> Compiler:
    """Return the function that compiles adapters of this configuration's method."""
    if isinstance(config, AdapterHubConfig):
        return compile_adapterhub
    module, _, function = METHODS[config.peft_type].compiler.rpartition(".")
    compiler: Compiler = getattr(import_module(f".{module}", __package__), function)
    return compiler


def prefix_of(config: AnyConfig) -> str:
    """Return what checkpoints of this configuration's method have before the names of the base's modules."""
    return PREFIX if isinstance(config, AdapterHubConfig) else METHODS[config.peft_type].prefix


def _open(folder: Path, files: ExitStack, table: SiteTable) -> LazyTensors:
    """Open the tensors of a checkpoint, until `files` closes."""
    header = read_header(folder / WEIGHTS)
    _check_types(header)
    file = files.enter_context(safe_open(folder / WEIGHTS, framework="pt", device="cpu"))
    return LazyTensors(header, file, unwrapped(header, table))


def _check_types(header: Mapping[str, TensorInfo]) -> None:
    for key, info in header.items():
        if info.dtype not in (*FLOATING, *CAST) and not (_INTEGERS.search(key) or is_idle(key)):
            raise InvalidAdapter(f"{key} holds {info.dtype}, where weights should be", param="files")


def _compile(config: AnyConfig, checkpoint: Checkpoint, base: Base) -> tuple[Bypass, tuple[str, ...], list[str]]:
    """Compile under the adapter's names.

    Returns the bypass under the base's, the modules that are left out, and what the configuration names in vain.
    """
    naming = naming_of(checkpoint, base.table)
    view = base if naming is None else base.renamed(naming)
    unused = set_aside(config, checkpoint, view.table, view.deadline)
    view = replace(view, table=without_read(config, view.table))
    bypass = _compile_text(for_text(config, unused, view.table), checkpoint, view)
    sites = {view.names.get(name, name): primitives for name, primitives in bypass.sites.items()}
    notes = note_on_modules(config.auxiliary, view.table)
    notes += note_on_parameters(config, view.table) if isinstance(config, LoraConfig) else []
    return replace(bypass, sites=sites), unused, notes


def _compile_text(config: AnyConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    trained = as_trained(config, checkpoint, base)
    auxiliary = compile_auxiliary(config.auxiliary, checkpoint, trained)
    own = compiler_of(config)(config, checkpoint, auxiliary.seen_by_method(trained))
    bypass = fitted(auxiliary.joined(own, trained), trained, base)
    if left := checkpoint.left():
        raise InvalidAdapter(f"tensors that the configuration does not put on this base: {listed(left)}", param="files")
    dense = sum(p.num_bytes for ps in bypass.sites.values() for p in ps if isinstance(p, Dense))
    if dense > base.max_dense_delta:
        raise AdapterTooLarge(
            f"its deltas have full rank and take {dense} bytes, as weights of their own; the server's "
            f"--max-dense-delta is {base.max_dense_delta}",
            param="files",
        )
    return bypass
