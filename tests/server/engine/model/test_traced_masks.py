"""What layers see is what transformers' own masks say, whatever the attention function is told."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.layout import Reach
from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.loading import load_model
from peftserve.server.engine.model.traced_masks import TracedMasks

LONG = 100  # longer than the traced prompt

REACHES: dict[str, tuple[str, dict[str, Any], list[Reach]]] = {
    "told of its window": ("mistral", {"sliding_window": LONG}, [Reach(LONG), Reach(LONG)]),
    "a window in the mask alone": (
        "qwen2_moe",
        {"sliding_window": LONG, "use_sliding_window": True, "max_window_layers": 1},
        [Reach(LONG), Reach(None)],
    ),
    "with a window that no layer has": (
        "qwen2_moe",
        {"sliding_window": LONG, "use_sliding_window": False},
        [Reach(None), Reach(None)],
    ),
    "chunks beside all": (
        "llama4",
        {"attention_chunk_size": LONG},
        [Reach(LONG, True), Reach(LONG, True), Reach(None)],
    ),
}


@pytest.mark.parametrize("name", REACHES)
def test_a_layers_reach_is_its_masks(oracle: ModuleType, tmp_path: Path, name: str) -> None:
    architecture, options, reaches = REACHES[name]
    folder = oracle.tiny_model(architecture, 0, tmp_path, **options)
    loaded = load_model(EngineConfig(model=str(folder), device="cpu"))
    assert [layer.reach for layer in loaded.attention.layers.values()] == reaches
    assert loaded.model.config._attn_implementation == loaded.attention.name


def test_a_mask_is_known_by_itself() -> None:
    masks = TracedMasks("traced_masks_test")
    asked = {"batch_size": 1, "q_length": 6, "kv_length": 6, "dtype": torch.float32, "device": torch.device("cpu")}

    def sliding(_: Any, __: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (key > query - 4)

    found = masks(**asked, mask_function=sliding, local_size=4)
    assert masks.reach(found) == Reach(4)
    assert found is not None
    assert masks.reach(found.clone()) is masks.reach(None) is None
    masks.clear()
    assert masks.reach(found) is None


def test_a_mask_of_tokens_is_refused() -> None:
    blocks = torch.zeros(6)

    def of_tokens(_: Any, __: Any, query: Any, key: Any) -> Any:
        return (key <= query) | (blocks[query] == blocks[key])

    asked = {"batch_size": 1, "q_length": 6, "kv_length": 6, "dtype": torch.float32, "device": torch.device("cpu")}
    with pytest.raises(UnservableModel, match="more than their positions"):
        TracedMasks("traced_masks_test")(**asked, mask_function=of_tokens, local_size=8)
