"""BOFT against PEFT, and its refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import BOFTConfig
from peft.tuners.boft import layer as boft_layer

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.errors import AdapterError, AdapterTooLarge
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import InputRotation, OutputScale

AsPeft = Callable[..., Bypass]


def quiet(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return parameter + 0.15 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "qwen2", "gemma2", "phi3"])
def test_boft(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    modules = ["qkv_proj", "down_proj"] if architecture == "phi3" else ["q_proj", "o_proj", "down_proj"]
    config = BOFTConfig(target_modules=modules, boft_block_size=4)
    bypass = as_peft(tiny_base(architecture), tmp_path, config, randomize=quiet)
    assert {InputRotation, OutputScale} <= {type(p) for ps in bypass.sites.values() for p in ps}


def test_boft_by_the_number_of_blocks_and_with_trained_biases(tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = BOFTConfig(target_modules=["q_proj", "down_proj"], boft_block_size=0, boft_block_num=8, bias="boft_only")
    as_peft(tiny_base("llama_biased"), tmp_path, config, randomize=quiet)


def test_boft_saved_with_one_pass_in_place_of_two(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = BOFTConfig(target_modules=["q_proj"], boft_block_size=4, boft_n_butterfly_factor=2)
    bypass = as_peft(llama, tmp_path, config, randomize=quiet)
    assert next(iter(bypass.sites.values()))[0].blocks.shape == (16, 4, 4)


@pytest.mark.parametrize(("passes", "size"), [(2, 4), (3, 4), (4, 2), (5, 4)])
def test_butterflies_of_boft(
    passes: int, size: int, llama: Any, as_peft: AsPeft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BlockDiagonal:
        """In place of PEFT's CUDA kernel."""

        @staticmethod
        def apply(blocks: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.block_diag(*one) for one in blocks])

    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)
    config = BOFTConfig(target_modules=["q_proj"], boft_block_size=size, boft_n_butterfly_factor=passes)
    bypass = as_peft(llama, tmp_path, config, randomize=quiet)
    wide = size << (passes - 1)
    assert next(iter(bypass.sites.values()))[0].blocks.shape == (64 // wide, wide, wide)
    if passes == 5:
        with pytest.raises(AdapterTooLarge, match="max-dense-delta"):
            compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model, max_dense_delta=1000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boft_block_num": 4}, "must be 0"),
        ({"boft_block_size": 0, "boft_block_num": 10**9}, "do not fit the 64 inputs"),
        ({"boft_block_size": 5}, "do not fit the 64 inputs"),
        ({"boft_block_size": 8}, "blocks of size 8 at .* take"),
        ({"boft_n_butterfly_factor": 0}, "boft_n_butterfly_factor must be an integer of at least 1"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str, llama: Any, oracle: Any, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, BOFTConfig(target_modules=["q_proj"], boft_block_size=4))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(AdapterError, match=message):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)
