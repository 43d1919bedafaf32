"""The computation of a planned merge: one module at a time is read, merged and written.

Memory is that of the largest module, whatever the number of adapters' tensors. The bytes depend on the adapters'
content, the options and the order of the adapters alone, where torch runs on one thread.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..errors import UnsupportedAdapter
from ..files import CONFIG, WEIGHTS
from .entries import How
from .kinds import KINDS, Options
from .methods import METHODS, Factors, Merged
from .plan import MergePlan, Module
from .raw import RawTensors
from .writer import TensorWriter

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Report = Callable[[int, int], None]


def run_merge(plan: MergePlan, folder: Path, report: Report) -> None:
    """Write the merged adapter's two files to a folder that lacks them.

    report: is told after each module how many of how many are done.
    Raises UnsupportedAdapter where parts beside the factors turn out not to be the same, OSError.
    """
    total = len(plan.modules) + len(plan.others)
    with _opened(plan) as files, TensorWriter(folder / WEIGHTS, plan.entries()) as writer:
        for done, module in enumerate(plan.modules, 1):
            _write(module, _merged(plan, module, files), DTYPES[plan.dtype], writer)
            report(done, total)
        for done, (key, owners) in enumerate(plan.others.items(), len(plan.modules) + 1):
            _copy(plan, key, owners, writer)
            report(done, total)
    with (folder / CONFIG).open("x", encoding="utf-8") as file:
        json.dump(plan.config, file, indent=2, sort_keys=True)


def seeded(options: Options, module: str) -> torch.Generator:
    """Return the generator of all that is drawn for a module, whatever is drawn for others."""
    digest = hashlib.sha256(f"{options.seed} {module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def _opened(plan: MergePlan) -> Iterator[Sequence[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(safe_open(source.folder / WEIGHTS, "pt")) for source in plan.sources]


def _merged(plan: MergePlan, module: Module, files: Sequence[Any]) -> Merged:
    options = plan.options
    how = How(options.density, options.majority_sign_method, seeded(options, module.name))
    weights = [source.weight for source in plan.sources]
    if KINDS[plan.kind].pair:  # these say a place between two
        weights = [weight / sum(weights) for weight in weights]
    parts = []
    for i, part in module.parts.items():
        a, b = (files[i].get_tensor(key).float() for key in (part.a, part.b))
        bias = None if part.bias is None else files[i].get_tensor(part.bias).float()
        parts.append(Factors(a, b, bias, part.scaling, weights[i]))
    return METHODS[plan.kind](parts, module.rank, how)


def _write(module: Module, merged: Merged, dtype: torch.dtype, writer: TensorWriter) -> None:
    for key, tensor in zip(module.keys, merged, strict=True):
        if tensor is not None:
            writer.write(key, tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())


def _copy(plan: MergePlan, key: str, owners: Sequence[int], writer: TensorWriter) -> None:
    """Copy a tensor that is no factor, and see that it is the same in all adapters that have it."""
    sources = [plan.sources[i] for i in owners]
    with ExitStack() as stack:
        files = [stack.enter_context(RawTensors(source.folder / WEIGHTS)) for source in sources]
        pieces = zip(
            *(file.pieces(source.others[key]) for file, source in zip(files, sources, strict=True)), strict=True
        )
        offset = 0
        for first, *rest in pieces:
            if odd := next((i for i, piece in enumerate(rest, 1) if piece != first), None):
                raise UnsupportedAdapter(
                    f"{sources[0].label} and {sources[odd].label} have different values in {key}: only factors of LoRA "
                    "are merged, and what lies beside them must be the same in all",
                    param="adapters",
                )
            writer.write(key, first, offset)
            offset += len(first)
