"""PEFT as a compiler, for methods whose result depends on its random draws or its own decompositions of the base.

Whatever the method, PEFT's module is an affine map of each token, y = W' x + b'. So PEFT loads the checkpoint onto
stand-ins for the targeted modules, and their outputs for rows of the identity, or for all ids of an embedding, are
what it adds. The stand-ins hold copies, in float32 on the CPU, and nothing else of the base: PEFT can write to none of
its weights. A Conv1D's stand-in is the linear layer that it is. peft is an optional extra of this package; this is the
only module that imports it.
"""

import importlib.util
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..bypass import Bypass
from ..errors import AdapterError, AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from ..primitives import Bias, Primitive
from ..sites import Site, SiteKind
from .base import Base, NamedTensor
from .compact import compacted
from .config import MethodConfig
from .fields import Fields
from .keys import PREFIX
from .listing import listed
from .memory import is_servers
from .patterns import Deadline
from .targets import targeted_sites
from .tensors import Checkpoint

Tensors = Mapping[str, torch.Tensor]

_ROWS_AT_ONCE = 1024
_PEFT = ("peft", "peftserve[peft]")
# PEFT changes the process's generators and warnings: one adapter at a time.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Probed:
    """How PEFT is asked for one method. Fields that a checkpoint does not set are left to PEFT's defaults.

    config: name of PEFT's class.
    integers: the fields that are integers, to their greatest value; `r` is held to the server's limit too.
    numbers, flags, words: the other fields, separated by spaces. options: fields that need more than reading.
    rank: the bound on every delta's rank, from PEFT's configuration; None if it can be full.
    needs_weight: whether PEFT decomposes the base's weights.
    replaces: whether PEFT's module computes W' itself instead of what it adds.
    casts_scales: whether PEFT casts what it draws to the type of the base's weight.
    conv1d, embeddings: whether PEFT has it for these too.
    check: checks that what PEFT will allocate fits the checkpoint.
    settle: computes again what a module of PEFT's took from tensors that were not yet the checkpoint's.
    requires: another package that PEFT needs for it, and its name for pip.
    """

    config: str
    integers: Mapping[str, int]
    numbers: str = ""
    flags: str = ""
    words: str = ""
    options: Callable[[Fields, list[str], Deadline], Mapping[str, Any]] = lambda fields, names, deadline: {}
    rank: Callable[[Any], int] | None = None
    needs_weight: bool = False
    replaces: bool = False
    conv1d: bool = True
    embeddings: bool = False
    casts_scales: bool = False
    check: Callable[[Any, list[str], Tensors], None] = lambda config, names, tensors: None
    settle: Callable[[Any, torch.dtype], None] = lambda module, dtype: None
    requires: tuple[str, str] = _PEFT


def compile_probed(probed: Probed, config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an adapter by running PEFT. Raises InvalidAdapter, UnsupportedAdapter, AdapterTooLarge."""
    method = config.peft_type
    _require(method, _PEFT, probed.requires)
    names = _targeted(probed, config, base)
    for name in names if probed.casts_scales else ():
        base.require_floats(name, method, "rounds the adapter's own scales to that type, so that nothing is left of it")
    options = _options(probed, config.fields, names, base.deadline)
    tensors = checkpoint.take_all()
    stand_ins = _stand_ins([base.table.sites[name] for name in names], base, method if probed.needs_weight else None)
    with _alone():
        peft_config = _peft_config(probed, options, names, tensors, base)
        model = _loaded(stand_ins, peft_config, tensors)
        for name in names:
            probed.settle(model.get_submodule(name), base.compute_dtype)
        bound = None if probed.rank is None else probed.rank(peft_config)
        sites = {
            name: tuple(_primitives(model.get_submodule(name), name, bound, probed, method, base)) for name in names
        }
    return Bypass(method, sites)


def _require(peft_type: str, *packages: tuple[str, str]) -> None:
    for package, name in packages:
        if importlib.util.find_spec(package) is None:
            raise UnsupportedAdapter(
                f"{peft_type} is compiled by PEFT itself, which needs a package that this server lacks: "
                f"pip install '{name}'",
                param="peft_type",
            )


def _targeted(probed: Probed, config: MethodConfig, base: Base) -> list[str]:
    assert config.targets is not None
    kinds = {SiteKind.LINEAR, SiteKind.HEAD} | ({SiteKind.EMBEDDING} if probed.embeddings else set())
    names = targeted_sites(config.targets, base.table, base.deadline, kinds=frozenset(kinds))
    transposed = [name for name in names if base.table.sites[name].transposed]
    if transposed and not probed.conv1d:
        raise InvalidAdapter(
            f"PEFT has {config.peft_type} for linear layers only, not for Conv1D: {listed(transposed)}",
            param="target_modules",
        )
    return names


@contextmanager
def _alone() -> Iterator[None]:
    """Run PEFT by itself: its changes to the process's state are undone, and its exceptions become InvalidAdapter."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with _LOCK, torch.random.fork_rng(devices), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except AdapterError:
        raise
    except Exception as error:  # PEFT raises exceptions of all kinds
        if is_servers(error):
            raise
        raise InvalidAdapter(f"PEFT cannot load it on this base: {error}"[:500], param="files") from None


def _options(probed: Probed, fields: Fields, names: list[str], deadline: Deadline) -> dict[str, Any]:
    """Return the checkpoint's fields, each of its type and within its limit. Raises InvalidAdapter."""
    options: dict[str, Any] = {}
    for name, greatest in probed.integers.items():
        options[name] = fields.integer(name, 0, 0)
        if options[name] > greatest:
            raise InvalidAdapter(f"{name} is {options[name]}; at most {greatest} is sensible", param=name)
    options |= {name: fields.number(name, 0.0) for name in probed.numbers.split()}
    options |= {name: fields.boolean(name) for name in probed.flags.split()}
    options |= {name: fields.value(name) for name in probed.words.split()}
    given = {name: value for name, value in options.items() if fields.value(name) is not None}
    return {**given, **probed.options(fields, names, deadline)}


def _peft_config(probed: Probed, options: Mapping[str, Any], names: list[str], tensors: Tensors, base: Base) -> Any:
    import peft

    if not hasattr(peft, probed.config):
        raise UnsupportedAdapter(
            f"PEFT {peft.__version__} on this server has no {probed.config}: pip install 'peftserve[peft]'",
            param="peft_type",
        )
    config = getattr(peft, probed.config)(target_modules=names, inference_mode=True, **options)
    rank = getattr(config, "r", 1)
    if rank > base.max_rank:
        raise AdapterTooLarge(f"rank {rank} is over the server's limit of {base.max_rank}", param="r")
    probed.check(config, names, tensors)
    return config


def _stand_ins(sites: list[Site], base: Base, method: str | None) -> nn.Module:
    """Return linear layers under the sites' own names, in the base's order, which PEFT's draws follow.

    method: one that needs the base's weights in them; None for one that needs none.
    """
    root = nn.Module()
    for site in sites:
        parent: nn.Module = root
        *path, leaf = site.name.split(".")
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, _copied(site, base, method) if method else _blank(site))
    return root


def _copied(site: Site, base: Base, method: str) -> nn.Module:
    module, bias = _blank(site), base.parameter(site.name, "bias")
    module.weight = _frozen(base.matrix(site.name, method).to("cpu", copy=True).contiguous())
    if bias is not None:
        module.bias = _frozen(bias.to("cpu", torch.float32, copy=True))
    return module


def _blank(site: Site) -> nn.Module:
    """Return a stand-in of zeros that take no memory, for methods that use only the shape of a weight."""
    if site.kind is SiteKind.EMBEDDING:
        module: nn.Module = nn.Embedding(site.in_features, site.out_features, device="meta")
    else:
        module = nn.Linear(site.in_features, site.out_features, bias=False, device="meta")
    module.weight = _frozen(torch.zeros(1).expand(module.get_parameter("weight").shape))
    return module


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _loaded(stand_ins: nn.Module, config: Any, tensors: Tensors) -> nn.Module:
    """Return PEFT's modules in place of the stand-ins, with every tensor of the checkpoint in them."""
    import peft

    model = peft.get_peft_model(stand_ins, config)
    _check_tensors(peft.get_peft_model_state_dict(model, save_embedding_layers=False), tensors)
    peft.set_peft_model_state_dict(model, dict(tensors))
    saved = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    for key, tensor in tensors.items():
        if not torch.equal(saved[key], tensor.to(saved[key].dtype)):
            raise InvalidAdapter(f"{key} is not what the other tensors say", param="files")
    wrapped: nn.Module = model.base_model.model
    return wrapped.eval()


def _check_tensors(wanted: Tensors, tensors: Tensors) -> None:
    """Check the checkpoint against what PEFT would save. Raises InvalidAdapter.

    A tensor that PEFT saves twice, since it is one in memory, may be there once.
    """
    if left := tensors.keys() - wanted.keys():
        raise InvalidAdapter(
            f"tensors that the configuration does not put on this base: {listed(sorted(left))}", param="files"
        )
    there = {wanted[key].data_ptr() for key in tensors}
    if missing := [key for key in wanted if key not in tensors and wanted[key].data_ptr() not in there]:
        raise InvalidAdapter(f"the configuration wants tensors that are missing: {listed(missing)}", param="files")
    for key, tensor in tensors.items():
        named = NamedTensor(key, tensor).require_shape(tuple(wanted[key].shape), "on this base it takes")
        if wanted[key].is_floating_point():
            named.converted(torch.float32)


def _primitives(
    module: Any, name: str, bound: int | None, probed: Probed, method: str, base: Base
) -> Iterator[Primitive]:
    site = base.table.sites[name]
    _blank_out(module.get_base_layer(), site)
    weight, bias = _affine(module, site)
    if probed.replaces:
        weight = weight - base.matrix(name, method)
    label = f"{PREFIX}{name}, as PEFT computes it,"
    yield compacted(NamedTensor(label, weight), bound, base.dtype)
    if bias.count_nonzero():
        yield Bias(NamedTensor(label, bias).converted(base.dtype))


def _blank_out(stand_in: nn.Module, site: Site) -> None:
    """Set the stand-in to zeros: PEFT has read its weight, and its outputs are exact only beside zeros."""
    stand_in.weight = _blank(site).weight
    if getattr(stand_in, "bias", None) is not None:
        stand_in.bias = _frozen(torch.zeros(site.out_features))


def _affine(module: nn.Module, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the affine map of a module. weight: (out_features, in_features); bias: (out_features,)."""
    embeds = site.kind is SiteKind.EMBEDDING
    bias = torch.zeros(site.out_features) if embeds else module(torch.zeros(1, site.in_features))[0]
    return torch.cat([(module(rows) - bias).T for rows in _identity(site)], dim=1), bias


def _identity(site: Site) -> Iterator[torch.Tensor]:
    for ids in torch.arange(site.in_features).split(_ROWS_AT_ONCE):
        yield ids if site.kind is SiteKind.EMBEDDING else nn.functional.one_hot(ids, site.in_features).float()
