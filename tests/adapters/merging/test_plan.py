"""Plans without tensors' values: what is refused and why, and what the result is said to be."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from peftserve.adapters.errors import AdapterError, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.merging.kinds import Options
from peftserve.adapters.merging.plan import MergePlan, MergeSource, plan_merge

Adapter = Callable[..., Path]
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """Writes an adapter of ranks by module. config: fields. more: tensors beside the factors. dtype: of the factors."""

    def write(
        name: str, ranks: dict[str, int], more: dict[str, Any] | None = None, dtype: Any = numpy.float32, **config: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        r = max(ranks.values(), default=1)
        fields = {"peft_type": "LORA", "r": r, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **config}
        (folder / "adapter_config.json").write_text(json.dumps(fields))
        tensors = {
            f"base_model.model.{module}.{factor}.weight": numpy.ones(shape, dtype)
            for module, rank in ranks.items()
            for factor, shape in (("lora_A", (rank, 6)), ("lora_B", (4, rank)))
        }
        save_file(tensors | (more or {}), folder / "adapter_model.safetensors")
        return folder

    return write


def plan(adapters: Sequence[Path], weight: float = 0.5, **options: Any) -> MergePlan:
    return plan_merge([MergeSource(path.name, str(path), weight) for path in adapters], Options(**options))


def refusal(kind: type[AdapterError], adapters: Sequence[Path], **options: Any) -> str:
    with pytest.raises(kind) as error:
        plan(adapters, **options)
    assert error.value.param is not None
    return error.value.message


def test_ranks_are_joined_as_the_kind_can(adapter: Adapter) -> None:
    a, b = adapter("a", {Q: 4, V: 4}), adapter("b", {Q: 2})
    c = adapter("c", {Q: 3, V: 4}, rank_pattern={"q_proj": 3})
    assert "a has 4, b has 2" in refusal(InvalidAdapter, [a, b], combination_type="linear")
    assert f"at {Q} a has 4, c has 3" in refusal(InvalidAdapter, [a, c], combination_type="ties")
    ranks = {
        kind: plan([a, b, c], combination_type=kind, svd_rank=svd_rank).rank
        for kind, svd_rank in (("cat", 5), ("svd", None), ("ties_svd", 5), ("della", None), ("knots", None))
    }
    assert ranks == {"cat": 10, "svd": 4, "ties_svd": 5, "della": 4, "knots": 10}
    between = plan([a, b], combination_type="slerp")
    assert (between.rank, [module.rank for module in between.modules]) == (6, [6, 4])
    assert between.config["rank_pattern"] == {"v_proj": 4}
    assert plan([a], combination_type="ties_svd", svd_rank=1).kind == "linear"  # as in PEFT
    assert plan([a], combination_type="knots").kind == "knots"


def test_the_configuration_is_the_first_ones_with_another_rank(adapter: Adapter) -> None:
    a = adapter(
        "a", {Q: 4, V: 4}, use_rslora=True, lora_dropout=0.1, init_lora_weights="gaussian", task_type="CAUSAL_LM"
    )
    b = adapter("b", {Q: 4}, target_modules=["q_proj", "o_proj"])
    config = plan([a, b]).config
    assert {name: config[name] for name in ("r", "lora_alpha", "lora_dropout", "task_type")} == {
        "r": 4,
        "lora_alpha": 4,
        "lora_dropout": 0.1,
        "task_type": "CAUSAL_LM",
    }
    assert (config["use_rslora"], config["init_lora_weights"], config["rank_pattern"]) == (False, True, {})
    assert config["target_modules"] == ["o_proj", "q_proj", "v_proj"]
    one, other = adapter("one", {Q: 2}, target_modules=".*q_proj"), adapter("other", {V: 2}, target_modules=".*v_proj")
    assert plan([one, other]).config["target_modules"] == "(.*q_proj)|(.*v_proj)"
    assert plan([one, b], combination_type="cat").config["target_modules"] == [Q]  # no list says what both match
    chosen = adapter("chosen", {V: 4}, layers_to_transform=[1], layers_pattern="layers")
    config = plan([chosen, b], combination_type="cat").config
    assert (config["target_modules"], config["layers_to_transform"], config["layers_pattern"]) == ([Q, V], None, None)


def test_factors_have_the_widest_type(adapter: Adapter) -> None:
    half, also, single = (
        adapter(name, {Q: 2}, dtype=dtype)
        for name, dtype in (("half", numpy.float16), ("also", numpy.float16), ("single", numpy.float32))
    )
    assert plan([half, also]).dtype == "F16"
    assert plan([half, single]).dtype == "F32"
    assert plan([half, also]).num_bytes == 2 * (2 * 6 + 4 * 2)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"peft_type": "IA3", "r": None, "lora_alpha": None}, "only LoRA adapters are merged, not IA3"),
    ],
)
def test_other_forms_are_refused_by_name(adapter: Adapter, config: dict[str, Any], reason: str) -> None:
    a, b = adapter("a", {Q: 2}), adapter("b", {Q: 2}, **config)
    message = refusal(UnsupportedAdapter, [a, b])
    assert message.startswith("b: ")
    assert reason in message


def test_what_lies_beside_the_factors_is_the_same_in_all(adapter: Adapter) -> None:
    head, copy = "base_model.model.lm_head.weight", f"base_model.model.{Q}.base_layer.weight"
    saved = {"modules_to_save": ["lm_head"]}
    a = adapter("a", {Q: 2}, {head: numpy.ones((5, 6), numpy.float32)}, **saved)
    b = adapter("b", {Q: 2}, {head: numpy.zeros((5, 6), numpy.float32)}, **saved)
    plain, copied = adapter("plain", {Q: 2}), adapter("copied", {Q: 2}, {copy: numpy.ones((4, 6), numpy.float32)})
    other = adapter("other", {Q: 2}, {head: numpy.zeros((5, 7), numpy.float32)}, **saved)
    assert plan([a, b]).others == {head: [0, 1]}  # whether they hold the same is seen when they are copied
    assert "differ in modules_to_save" in refusal(UnsupportedAdapter, [a, plain])
    assert "lm_head.weight" in refusal(UnsupportedAdapter, [a, other])
    assert "differ in trainable_token_indices" in refusal(
        UnsupportedAdapter, [plain, adapter("tokens", {Q: 2}, trainable_token_indices=[1])]
    )
    assert plan([plain, copied]).others == {copy: [1]}


def test_malformed_adapters_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    a = adapter("a", {Q: 2})
    name = f"base_model.model.{Q}"
    for number, (more, reason) in enumerate(
        [
            ({f"{name}.lora_A.weight": numpy.ones((2, 6), numpy.float32)}, "not the two factors"),
            ({}, "no factors of LoRA"),
        ]
    ):
        assert reason in refusal(InvalidAdapter, [a, adapter(f"x{number}", {}, more)])
    odd = adapter("odd", {}, {f"{name}.lora_{x}.weight": numpy.ones((3, 6), numpy.float32) for x in "AB"})
    assert "do not fit each other" in refusal(InvalidAdapter, [odd])
    wide = {f"{name}.lora_A.weight": numpy.ones((2, 9)), f"{name}.lora_B.weight": numpy.ones((4, 2))}
    other = adapter("wide", {}, {key: array.astype(numpy.float32) for key, array in wide.items()}, r=2)
    assert "of different bases" in refusal(InvalidAdapter, [a, other])


@pytest.mark.parametrize(
    ("options", "weight", "param"),
    [
        ({"combination_type": "mean"}, 1, "combination_type"),
        ({"density": 0.0}, 1, "density"),
        ({"density": float("nan")}, 1, "density"),
        ({"svd_rank": 0}, 1, "svd_rank"),
        ({"seed": -1}, 1, "seed"),
        ({}, float("inf"), "adapters"),
        ({"combination_type": "slerp"}, -1, "adapters"),
    ],
)
def test_bad_options_are_refused(adapter: Adapter, options: dict[str, Any], weight: float, param: str) -> None:
    a = adapter("a", {Q: 2})
    with pytest.raises(InvalidAdapter) as error:
        plan([a, a], weight, **options)
    assert error.value.param == param
