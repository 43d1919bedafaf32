import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from peftserve.adapters.errors import AdapterError, AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.config import (
    AuxiliaryConfig,
    LoraConfig,
    Targets,
    notes_on_fields,
    parse_config,
    read_config,
)
from peftserve.adapters.peft.methods import METHODS
from peftserve.adapters.peft.unsupported import UNSERVABLE
from peftserve.adapters.peft.variant import LoraVariant

MINIMAL = {"peft_type": "LORA", "target_modules": ["q_proj"]}


def parse(**fields: Any) -> LoraConfig:
    return parse_config({**MINIMAL, **fields})


def test_defaults_are_peft_s(tmp_path: Path) -> None:
    config = parse()
    theirs = peft.LoraConfig(target_modules=["q_proj"])
    assert config == LoraConfig(Targets(("q_proj",)), theirs.r, theirs.lora_alpha, {}, {}, False, False)


def test_what_peft_writes(tmp_path: Path) -> None:
    peft.LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["v_proj"],
        exclude_modules=["k_proj"],
        layers_to_transform=[1, 2],
        layers_pattern="layers",
        rank_pattern={"v_proj": 4},
        alpha_pattern={"v_proj": 3},
        use_rslora=True,
        lora_dropout=0.1,
        fan_in_fan_out=True,
        init_lora_weights="gaussian",
        task_type="CAUSAL_LM",
        ensure_weight_tying=True,
    ).save_pretrained(str(tmp_path))
    targets = Targets(("v_proj",), ("k_proj",), (1, 2), ("layers",))
    wanted = LoraConfig(
        targets, 16, 32.0, {"v_proj": 4}, {"v_proj": 3.0}, True, True, auxiliary=AuxiliaryConfig(tie=True)
    )
    assert read_config(tmp_path) == wanted


def test_every_field_of_peft_is_known() -> None:
    """A field that the next PEFT adds shows up here, and is ignored until somebody looks at it."""
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if (method := METHODS.get(kind.value)) is not None:
            fields = {field.name for field in dataclasses.fields(config)}
            assert fields - method.known <= method.refused.keys(), kind
            assert {*method.reads.split(), *method.refused} <= fields, kind
    assert {kind.value for kind in PeftType} | {"BONE"} == METHODS.keys() | UNSERVABLE.keys()


def test_what_is_trained_beside_the_method() -> None:
    """A module that is saved whole is not adapted."""
    config = parse(modules_to_save=["norm"], trainable_token_indices={"lm_head": [3]}, bias="lora_only")
    assert config.targets == Targets(("q_proj",), saved=("norm",))
    assert config.auxiliary == AuxiliaryConfig(("norm",), {"lm_head": (3,)}, "lora_only", False)
    assert parse(trainable_token_indices=[3, 4]).auxiliary.tokens == {"": (3, 4)}


def test_scaling() -> None:
    assert parse().scaling(4, 8.0) == 2.0
    assert parse(use_rslora=True).scaling(4, 8.0) == 4.0


@pytest.mark.parametrize("field", METHODS["LORA"].refused)
@pytest.mark.parametrize("value", [True, ["x"], {"x": 1}])
def test_what_is_not_served_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedAdapter, match=f"^{field} is not supported yet: ") as error:
        parse(**{field: value})
    assert error.value.param == field


@pytest.mark.parametrize("field", METHODS["LORA"].refused)
@pytest.mark.parametrize("value", [None, False, [], {}])
def test_what_is_not_served_may_be_off(field: str, value: Any) -> None:
    assert parse(**{field: value}) == parse()


@pytest.mark.parametrize("init", ["pissa_niter_16", "PiSSA_niter_4", "corda", "lora_ga"])
def test_initialisations_that_change_the_base(init: str) -> None:
    with pytest.raises(
        UnsupportedAdapter, match=f"^init_lora_weights='{init}' is not supported yet: it leaves the base"
    ):
        parse(init_lora_weights=init)


def test_loftq_is_told_which_base_it_belongs_to() -> None:
    with pytest.raises(UnsupportedAdapter, match="weights that LoftQ put in place of the base's; serve that base"):
        parse(init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    assert parse(init_lora_weights=True, loftq_config={"loftq_bits": 4, "loftq_iter": 1}).variant == parse().variant


@pytest.mark.parametrize("init", ["pissa", "PiSSA", "olora"])
def test_initialisations_that_can_be_worked_out_again(init: str) -> None:
    assert parse(init_lora_weights=init).variant == LoraVariant(start=init.lower())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True, "lora_bias": True}, "PEFT does not put use_dora and lora_bias together"),
        ({"use_dora": True, "kasa_config": {"beta": 1}}, "use_dora and kasa_config together"),
        ({"init_lora_weights": "pissa", "lora_bias": True}, "lora_bias and init_lora_weights together"),
        ({"use_bdlora": True}, "use_bdlora must be an object"),
        ({"use_bdlora": {"nblocks": 0}}, "nblocks must be an integer of at least 1"),
        ({"use_dora": 1}, "use_dora must be true or false"),
        ({"use_qalora": True, "qalora_group_size": 0}, "qalora_group_size must be an integer of at least 1"),
        ({"alora_invocation_tokens": ["x"]}, "alora_invocation_tokens must be an integer"),
    ],
)
def test_forms_that_are_none(fields: Any, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        parse(**fields)


@pytest.mark.parametrize("init", ["new_init", 3, ["gaussian"], {}])
def test_initialisations_that_nobody_knows(init: Any) -> None:
    with pytest.raises(UnsupportedAdapter, match="is not supported yet: no such initialisation"):
        parse(init_lora_weights=init)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_no_trace(init: Any) -> None:
    assert parse(init_lora_weights=init, eva_config={"rho": 2.0}, bias="none") == parse()


@pytest.mark.parametrize("kind", sorted(UNSERVABLE))
def test_other_methods_are_refused_by_name(kind: str) -> None:
    with pytest.raises(
        UnsupportedAdapter, match=f"^{kind} is not supported yet: its? .*; (train|serve|upload) "
    ) as error:
        parse(peft_type=kind)
    assert error.value.param == "peft_type"


@pytest.mark.parametrize("kind", ["lora", "FOO", "", 3, None, ["LORA"], {"LORA": 1}])
def test_what_is_no_method(kind: Any) -> None:
    with pytest.raises(InvalidAdapter, match="peft_type must name a method"):
        parse(peft_type=kind)
    with pytest.raises(InvalidAdapter, match="has no peft_type"):
        parse_config({"r": 8})


def test_unknown_fields() -> None:
    """They have no effect in PEFT either, which warns of them; those that are off need no note."""
    off = {"new_field": None, "other_new_field": False, "third": 0, "fourth": [], "merge_weights": True}
    assert parse(**off) == parse()
    assert notes_on_fields({**MINIMAL, **off}) == []
    for value in (True, 1, "x", [0], {"a": None}):
        assert parse(new_field=value) == parse()
        (note,) = notes_on_fields({**MINIMAL, "new_field": value})
        assert note.endswith("ignored: new_field")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("r", 0, "r must be an integer of at least 1, not 0"),
        ("r", -8, "at least 1"),
        ("r", 8.0, "r must be an integer"),
        ("r", "8", "r must be an integer"),
        ("r", True, "r must be an integer"),
        ("lora_alpha", "16", "lora_alpha must be a number, not '16'"),
        ("lora_alpha", False, "lora_alpha must be a number"),
        ("lora_alpha", 1e300, "lora_alpha must be a number"),
        ("lora_alpha", 10**400, "lora_alpha must be a number"),
        ("use_rslora", "yes", "use_rslora must be true or false, not 'yes'"),
        ("use_rslora", 1, "use_rslora must be true or false"),
        ("target_modules", 3, "target_modules must be a string or a list of strings"),
        ("target_modules", [1], "target_modules must be a string or a list of strings"),
        ("target_modules", {"q_proj": 1}, "target_modules must be a string or a list of strings"),
        ("target_modules", None, "target_modules is missing or empty"),
        ("target_modules", [], "target_modules is missing or empty"),
        ("target_modules", "", "target_modules is missing or empty"),
        ("exclude_modules", [["x"]], "exclude_modules must be"),
        ("layers_to_transform", ["1"], "layers_to_transform must be an integer of at least 0"),
        ("layers_to_transform", [-1], "layers_to_transform must be an integer of at least 0"),
        ("layers_pattern", 3, "layers_pattern must be"),
        ("rank_pattern", ["x"], "rank_pattern must be an object"),
        ("rank_pattern", {"x": 0}, r"rank_pattern\['x'\] must be an integer of at least 1"),
        ("alpha_pattern", {"x": "y" * 999}, r"alpha_pattern\['x'\] must be a number"),
        ("ensure_weight_tying", "x", "ensure_weight_tying must be true or false"),
    ],
)
def test_types(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message) as error:
        parse(**{field: value})
    assert error.value.param == field
    assert len(error.value.message) < 400


@pytest.mark.parametrize("field", ["layers_to_transform", "layers_pattern"])
def test_layers_do_not_go_with_an_expression(field: str) -> None:
    with pytest.raises(InvalidAdapter, match=f"{field} does not go together"):
        parse(target_modules="all-linear", **{field: [1] if field == "layers_to_transform" else ["x"]})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"r": NaN}', '{"r": 1, "r": 2}', "[" * 10_000, "\ufeff{}"])
def test_malformed_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json"):
        read_config(tmp_path)


def test_large_files(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(AdapterTooLarge):
        read_config(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({field.name for field in dataclasses.fields(peft.LoraConfig)} | {"new_field"})


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5), st.booleans())
def test_fuzzed_configurations_raise_nothing_else(fields: Mapping[str, Any], minimal: bool) -> None:
    message = ""
    try:
        assert parse_config({**fields, **MINIMAL} if minimal else fields).r >= 1
    except AdapterError as error:
        message = error.message
    assert len(message) < 1000
