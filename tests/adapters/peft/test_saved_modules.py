"""Which modules are served as whole copies, and which are refused with the reason."""

from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter


@pytest.mark.parametrize("module", ["mlp", "experts", "layers.1"])
def test_experts_saved_whole_are_refused_as_what_they_are(
    module: str, mixtral: Any, tmp_path: Path, oracle: ModuleType
) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[module])
    folder = oracle.method_adapter(mixtral.folder, tmp_path, config)
    with pytest.raises(UnsupportedAdapter, match=r"layers\.1\.mlp\.experts, a mixture's experts .* not supported yet"):
        compile_adapter(folder, mixtral.table, torch.float32, model=mixtral.model)
