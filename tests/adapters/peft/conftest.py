"""Fixtures of the compilers' tests: tiny bases as PEFT and as our table see them, and checkpoints that PEFT writes."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.sites import ExpertParameter, Site, SiteKind, SiteTable


@dataclass(frozen=True)
class TinyBase:
    folder: Path
    model: PreTrainedModel
    table: SiteTable


@pytest.fixture(scope="session")
def tiny_base(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyBase]:
    @cache
    def make(architecture: str) -> TinyBase:
        folder = oracle.tiny_model(architecture, 0, tmp_path_factory.mktemp("bases") / architecture)
        model = AutoModelForCausalLM.from_pretrained(folder)
        return TinyBase(folder, model, _table(model))

    return make


@pytest.fixture(scope="session")
def llama(tiny_base: Callable[[str], TinyBase]) -> TinyBase:
    return tiny_base("llama")


@pytest.fixture(scope="session")
def mixtral(tiny_base: Callable[[str], TinyBase]) -> TinyBase:
    """A mixture, with its stacked experts among the sites."""
    base = tiny_base("mixtral")
    sites = dict(base.table.sites)
    for name, module in base.model.named_modules():
        if hasattr(module, "gate_up_proj"):
            stacked = [(n, *p.transpose(1, 2).shape) for n, p in module.named_parameters(recurse=False)]
            parameters = tuple(ExpertParameter(*shape) for shape in stacked)
            sites[name] = Site(name, SiteKind.EXPERTS, 64, 64, parameters=parameters)
    return replace(base, table=replace(base.table, sites=sites))


@pytest.fixture(scope="session")
def checkpoint(oracle: ModuleType) -> Callable[..., Path]:
    """Has PEFT write an adapter of `LoraConfig(**options)` with random factors."""

    def write(base: TinyBase, folder: Path, **options: Any) -> Path:
        path: Path = oracle.random_adapter(base.folder, folder, 1, **options)
        return path

    return write


@pytest.fixture(scope="session")
def deltas_of_peft() -> Callable[[TinyBase, Path], dict[str, torch.Tensor]]:
    """Measures what PEFT adds at each module that it wraps, for the inputs of `probe`."""

    def measure(base: TinyBase, folder: Path) -> dict[str, torch.Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fresh = AutoModelForCausalLM.from_pretrained(base.folder)
            model = PeftModel.from_pretrained(fresh, folder).base_model.model
        return dict(_deltas(model, base.table))

    return measure


@pytest.fixture(scope="session")
def deltas_of_bypass() -> Callable[[TinyBase, Bypass], dict[str, torch.Tensor]]:
    """Computes the same by the formulas of the primitives."""

    def measure(base: TinyBase, bypass: Bypass) -> dict[str, torch.Tensor]:
        deltas = {}
        for name, primitives in bypass.sites.items():
            site = base.table.sites[name]
            ((a, b),) = [(p.a, p.b) for p in primitives]
            x = probe(site)
            hidden = a.T[x] if site.kind is SiteKind.EMBEDDING else x @ a.T
            deltas[name] = hidden @ b.T
        return deltas

    return measure


def probe(site: Site) -> torch.Tensor:
    generator = torch.Generator().manual_seed(site.in_features)
    if site.kind is SiteKind.EMBEDDING:
        return torch.randint(site.in_features, (7,), generator=generator)
    return torch.randn(7, site.in_features, generator=generator)


@torch.no_grad()
def _deltas(model: nn.Module, table: SiteTable) -> Iterator[tuple[str, torch.Tensor]]:
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            x = probe(table.sites[name])
            yield name, module(x) - module.base_layer(x)


def _table(model: PreTrainedModel) -> SiteTable:
    modules: Mapping[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {module: name for name, module in modules.items()}
    sites = {name: site for name, module in modules.items() if (site := _site(name, module, head)) is not None}
    return SiteTable(
        sites,
        head=names[head],
        embedding=names[embedding],
        tied_head=names[embedding] if head.weight is embedding.weight else None,
        other_modules=frozenset(modules.keys() - sites.keys()),
    )


def _site(name: str, module: nn.Module, head: nn.Module) -> Site | None:
    if isinstance(module, nn.Embedding):
        scale = float(getattr(module, "embed_scale", 1.0))
        return Site(name, SiteKind.EMBEDDING, module.num_embeddings, module.embedding_dim, scale)
    if isinstance(module, Conv1D):
        return Site(name, SiteKind.LINEAR, module.nx, module.nf, transposed=True)
    if isinstance(module, nn.Linear):
        kind = SiteKind.HEAD if module is head else SiteKind.LINEAR
        return Site(name, kind, module.in_features, module.out_features)
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.dim() == 1:
        return Site(name, SiteKind.NORM, len(weight), len(weight))
    return None


@pytest.fixture(scope="session")
def as_peft(oracle: ModuleType) -> Callable[..., Bypass]:
    """Has PEFT write an adapter of `config` on the base, compiles it, compares logits; returns what it compiled to."""

    def check(base: TinyBase, folder: Path, config: Any, *, task: int | None = None, **options: Any) -> Bypass:
        adapter = oracle.method_adapter(base.folder, folder, config, **options)
        model = oracle.plain_model(base.folder)
        bypass = compile_adapter(adapter, base.table, torch.float32, model=model, task=task or 0).bypass
        ids = [5, 17, 42, 99, 7, 250, 31, 8]
        inputs = {} if task is None else {"task_ids": torch.tensor([task])}
        wanted = oracle.peft_logits(base.folder, adapter, ids, **inputs)
        with torch.inference_mode():
            bare = model(torch.tensor([ids])).logits[0]
        assert (wanted - bare).abs().max() > 0.02, "the adapter changes nothing: this test could not fail"
        torch.testing.assert_close(oracle.naive_logits(model, bypass, ids), wanted, rtol=1e-4, atol=2e-4)
        return bypass

    return check
