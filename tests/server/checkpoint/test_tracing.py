from pathlib import Path
from types import ModuleType

from transformers import AutoConfig

from peftserve.server.checkpoint.tracing import trace_sites
from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.loading import load_model


def test_sites_without_weights_are_those_that_the_engine_finds(oracle: ModuleType, tmp_path: Path) -> None:
    for architecture in oracle.ARCHITECTURES:
        folder = oracle.tiny_model(architecture, 1, tmp_path / architecture)
        served = load_model(EngineConfig(model=str(folder), device="cpu", dtype="float32")).sites.table
        assert trace_sites(AutoConfig.from_pretrained(folder)) == served, architecture
