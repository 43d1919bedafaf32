"""OFT and RoAD against PEFT, and their refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import OFTConfig, RoadConfig

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.errors import AdapterError
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import InputRotation, PairRotation, Replacement

AsPeft = Callable[..., Bypass]
TARGETS = {"phi3": ["qkv_proj", "down_proj"]}


def targets(architecture: str) -> list[str]:
    return TARGETS.get(architecture, ["q_proj", "o_proj", "down_proj"])


def quiet(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return parameter + 0.15 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "qwen2", "gemma2", "phi3"])
def test_oft(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = OFTConfig(target_modules=targets(architecture), oft_block_size=8)
    bypass = as_peft(tiny_base(architecture), tmp_path, config, randomize=quiet)
    assert {type(p) for ps in bypass.sites.values() for p in ps} == {InputRotation}


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({"oft_block_size": 0, "r": 4}, {(4, 16, 16), (4, 24, 24)}),
        ({"oft_block_size": 20}, {(4, 16, 16), (6, 16, 16)}),
        ({"oft_block_size": 1000}, {(1, 64, 64), (1, 96, 96)}),
        ({"oft_block_size": 0, "r": 7}, {(8, 8, 8), (6, 16, 16)}),
        ({"oft_block_size": 8, "block_share": True}, {(1, 8, 8)}),
        ({"oft_block_size": 8, "use_cayley_neumann": False}, {(8, 8, 8), (12, 8, 8)}),
        ({"oft_block_size": 8, "use_cayley_neumann": False, "block_share": True}, {(1, 8, 8)}),
        *(({"oft_block_size": 8, "num_cayley_neumann_terms": n}, {(8, 8, 8), (12, 8, 8)}) for n in (2, 3, 4, 7)),
        ({"oft_block_size": 8, "coft": True, "eps": 3.0}, {(8, 8, 8), (12, 8, 8)}),
        ({"oft_block_size": 8, "coft": True, "eps": 1.0, "block_share": True}, {(1, 8, 8)}),
    ],
)
def test_variants_of_oft(
    options: dict[str, Any], shapes: set[tuple[int, ...]], llama: Any, as_peft: AsPeft, tmp_path: Path
) -> None:
    bypass = as_peft(llama, tmp_path, OFTConfig(target_modules=["q_proj", "down_proj"], **options), randomize=quiet)
    assert {tuple(p.blocks.shape) for ps in bypass.sites.values() for p in ps if isinstance(p, InputRotation)} == shapes


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_oft_on_embedding_and_head(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = OFTConfig(target_modules=["embed_tokens", "lm_head"], oft_block_size=8)
    bypass = as_peft(tiny_base(architecture), tmp_path, config, randomize=quiet)
    assert isinstance(bypass.sites["model.embed_tokens"][0], Replacement)
    assert isinstance(bypass.sites["lm_head"][0], InputRotation)


@pytest.mark.parametrize("bias", ["all", "oft_only"])
def test_oft_with_trained_biases(bias: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = OFTConfig(target_modules=["q_proj", "down_proj"], oft_block_size=8, bias=bias)
    as_peft(tiny_base("llama_biased"), tmp_path, config, randomize=quiet)


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "qwen2", "gemma2", "phi3"])
def test_road(variant: str, architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = RoadConfig(target_modules=targets(architecture), variant=variant, group_size=8)
    bypass = as_peft(tiny_base(architecture), tmp_path, config)
    assert {type(p) for ps in bypass.sites.values() for p in ps} == {PairRotation}


@pytest.mark.parametrize("group", [2, 16, 64])
def test_groups_of_road(group: int, llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    as_peft(llama, tmp_path, RoadConfig(target_modules=["q_proj", "o_proj"], variant="road_1", group_size=group))


OFT = OFTConfig(target_modules=["q_proj"], oft_block_size=8)
ROAD = RoadConfig(target_modules=["q_proj"], group_size=8)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (OFT, {"oft_block_size": None}, "PEFT before 0.14"),
        (OFT, {"r": 8}, r"one of r \(8\) and oft_block_size \(8\) must be 0"),
        (OFT, {"oft_block_size": 16}, "blocks of size 16 at .* take"),
        (OFT, {"oft_block_size": 1}, "rotate nothing"),
        (OFT, {"oft_block_size": -8}, "oft_block_size must be an integer of at least 0"),
        (OFT, {"num_cayley_neumann_terms": 1}, "num_cayley_neumann_terms must be an integer of at least 2"),
        (OFT, {"num_cayley_neumann_terms": 10**9}, "at most 64 are of use"),
        (OFT, {"coft": True, "eps": 0}, "eps must be over 0"),
        (OFT, {"block_share": "yes"}, "block_share must be true or false"),
        (OFT, {"target_modules": ["q_proj", "input_layernorm"]}, "neither linear layers nor embeddings"),
        (ROAD, {"group_size": 7}, "group_size must be even"),
        (ROAD, {"group_size": 48}, "does not divide the 64 outputs"),
        (ROAD, {"variant": "road_3"}, "variant must be one of road_1, road_2, road_4"),
        (ROAD, {"variant": "road_4"}, "road_4 at .* takes"),
    ],
)
def test_refusals(config: Any, fields: dict[str, Any], message: str, llama: Any, oracle: Any, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, config)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(AdapterError, match=message):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)
