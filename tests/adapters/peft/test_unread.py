"""What is left out of an adapter that was trained on towers too, and which methods cannot be."""

from typing import Any

import pytest
import torch

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.adapters.peft.config import parse_config
from peftserve.adapters.peft.patterns import Deadline
from peftserve.adapters.peft.tensors import Checkpoint
from peftserve.adapters.peft.unread import for_text, set_aside, without_read
from peftserve.adapters.sites import Site, SiteKind, SiteTable

TEXT = "model.language_model.layers.0.q_proj"
TOWER = "model.eyes.layers.3.q_proj"
TABLE = SiteTable(
    {name: Site(name, SiteKind.LINEAR, 4, 4) for name in (TEXT, "model.language_model.norm")},
    other_modules=frozenset({"model", "model.language_model"}),
    unread=frozenset({"model.eyes", "model.eyes.layers", "model.eyes.layers.3", TOWER}),
)
TEXT_ALONE = SiteTable({"model.visual.q_proj": Site("model.visual.q_proj", SiteKind.LINEAR, 4, 4)})


def checkpoint(*names: str) -> Checkpoint:
    return Checkpoint({f"base_model.model.{name}": torch.zeros(1) for name in names})


def config(**fields: Any) -> Any:
    return parse_config({"peft_type": "LORA", "target_modules": ["q_proj"], **fields})


def test_tensors_of_towers_are_set_aside_by_name() -> None:
    tensors = checkpoint(f"{TEXT}.lora_A.weight", f"{TOWER}.lora_A.weight", f"{TOWER}.lora_B.weight")
    assert set_aside(config(), tensors, TABLE, Deadline()) == ("model.eyes.layers.*.q_proj",)
    assert tensors.left() == [f"base_model.model.{TEXT}.lora_A.weight"]


def test_towers_are_known_by_their_names_on_a_text_model_too() -> None:
    tensors = checkpoint(
        "visual.blocks.0.qkv.lora_A.weight", "model.vision_tower.x.lora_A.weight", "model.other.lora_A"
    )
    assert set_aside(config(), tensors, TABLE, Deadline()) == ("visual.blocks.*.qkv", "model.vision_tower.x")
    assert tensors.left() == ["base_model.model.model.other.lora_A"]
    own = SiteTable(TEXT_ALONE.sites, other_modules=frozenset({"model.visual"}))
    assert set_aside(config(), checkpoint("model.visual.q_proj.lora_A.weight"), own, Deadline()) == ()


def test_saved_modules_of_towers_are_left_out_of_the_configuration() -> None:
    asked = config(modules_to_save=["eyes", "norm", "absent"])
    assert for_text(asked, ("model.eyes.norm",), TABLE).auxiliary.modules == ("norm", "absent")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], r".*layers\.3\.q_proj"])
def test_methods_whose_modules_depend_on_each_other_are_refused(targets: Any) -> None:
    vera = {"peft_type": "VERA", "target_modules": targets}
    with pytest.raises(UnsupportedAdapter, match="no text passes"):
        set_aside(config(**vera), checkpoint(), TABLE, Deadline())
    assert set_aside(config(**vera), checkpoint(), TEXT_ALONE, Deadline()) == ()


@pytest.mark.parametrize(
    ("fields", "served"),
    [
        ({}, True),
        ({"use_dora": True}, True),
        ({"init_lora_weights": "pissa"}, False),  # which has changed the weight that is read
        ({"modules_to_save": ["dt_proj"]}, False),
    ],
)
def test_layers_around_linears_that_are_only_read_change_nothing(fields: dict[str, Any], served: bool) -> None:
    read = frozenset({"layers.0.dt_proj"})
    table = SiteTable(TABLE.sites, other_modules=read | {"layers"}, irregular=read, matrices=read, read=read)
    asked = config(target_modules=["q_proj", "dt_proj"], **fields)
    tensors = checkpoint("layers.0.dt_proj.lora_A.weight", "layers.0.dt_proj.bias")
    assert set_aside(asked, tensors, table, Deadline()) == (("layers.*.dt_proj",) if served else ())
    assert ("base_model.model.layers.0.dt_proj.lora_A.weight" in tensors.left()) is not served
    assert "base_model.model.layers.0.dt_proj.bias" in tensors.left()
    assert (without_read(asked, table).matrices == frozenset()) is served
    vera = config(peft_type="VERA", target_modules=["dt_proj"])
    assert without_read(vera, table).matrices == read
