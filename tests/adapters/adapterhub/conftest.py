"""What `make_fixture.py` wrote: bases, adapters on them, and the answers of AdapterHub's own library."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peftserve.adapters.sites import SiteTable
from peftserve.server.engine.model.sites import SiteTracer

FIXTURE = Path(__file__).parent / "fixture"
PROMPT = [5, 17, 42, 9, 7, 25, 31, 8]


@dataclass(frozen=True)
class HubBase:
    """answers: case to `logits` of the prompt, and to the greedy `tokens` after it."""

    folder: Path
    model: PreTrainedModel
    table: SiteTable
    answers: dict[str, Any]


@pytest.fixture(scope="session")
def hub_base(oracle: ModuleType) -> Callable[[str], HubBase]:
    @cache
    def make(architecture: str) -> HubBase:
        folder = FIXTURE / architecture
        model = oracle.plain_model(folder)
        with torch.inference_mode(), SiteTracer(model, len(PROMPT)) as tracer:
            model(torch.tensor([PROMPT]))
        return HubBase(folder, model, tracer.result().table, json.loads((folder / "answers.json").read_text()))

    return make


@pytest.fixture
def hub_adapter(tmp_path: Path) -> Callable[..., Path]:
    """A copy of one of the Llama's adapters, whose `config` has other values."""

    def copy(case: str, model_type: str = "llama", **changes: Any) -> Path:
        folder = Path(shutil.copytree(FIXTURE / "llama" / case, tmp_path / case))
        file = folder / "adapter_config.json"
        saved = json.loads(file.read_text())
        saved["config"] |= changes
        saved["model_type"] = model_type
        file.write_text(json.dumps(saved))
        return folder

    return copy
