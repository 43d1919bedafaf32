from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoConfig

from peftserve.adapters.sites import SiteTable
from peftserve.server.checkpoint.errors import MergeRefused
from peftserve.server.checkpoint.tracing import trace_sites
from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.loading import LoadedModel, load_model


def test_sites_without_weights_are_those_that_the_engine_finds(oracle: ModuleType, tmp_path: Path) -> None:
    for architecture in oracle.ARCHITECTURES:
        folder = oracle.tiny_model(architecture, 1, tmp_path / architecture)
        loaded = load_model(EngineConfig(model=str(folder), device="cpu", dtype="float32"))
        if architecture == "rwkv":  # which rescales its weights when it is run
            with pytest.raises(MergeRefused, match="cannot be traced without its weights"):
                trace_sites(AutoConfig.from_pretrained(folder))
        else:
            assert trace_sites(AutoConfig.from_pretrained(folder)) == known_by_shapes(loaded), architecture


def known_by_shapes(loaded: LoadedModel) -> SiteTable:
    """Return the sites without what numbers alone tell: of norms inside mixers that they see tokens in their order, and
    of linears that their weights are read and they are never called. A merge refuses adapters there.
    """
    table, norms = loaded.sites.table, loaded.states.norms.keys()
    sites = {name: site for name, site in table.sites.items() if name not in norms}
    others, irregular = table.other_modules | norms, table.irregular | norms
    return replace(table, sites=sites, other_modules=others, irregular=irregular, read=frozenset())


def test_of_a_multimodal_model_the_sites_are_those_of_its_text(oracle: ModuleType, tmp_path: Path) -> None:
    for name in ("gemma3", "llava", "qwen2_5_vl", "qwen3_vl_moe"):
        folder = oracle.wrapped_model(name, 1, tmp_path / name)
        served = load_model(EngineConfig(model=str(folder), device="cpu", dtype="float32")).sites.table
        assert trace_sites(AutoConfig.from_pretrained(folder)) == served, name
        assert served.unread
