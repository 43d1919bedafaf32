"""What transformers is told of quantisation, and what is said where that cannot be."""

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model import quantisation
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.quantisation import how_to_load, keep_as_loaded

CPU = torch.device("cpu")


def told(asked: str | None, dtype: torch.dtype = torch.float32, **own: Any) -> dict[str, Any]:
    """Return what `from_pretrained` is told for a checkpoint whose quantization_config holds `own`."""
    config = PreTrainedConfig(**({"quantization_config": own} if own else {}))
    told = how_to_load(asked, config, dtype, CPU)
    told.pop("device_map", None)
    return told


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "find_spec", lambda name: True)


def test_a_plain_base_stays_plain() -> None:
    assert how_to_load(None, PreTrainedConfig(), torch.float32, CPU) == {}


@pytest.mark.parametrize("asked", [None, "gptq", "gptq_marlin"])
def test_a_quantised_checkpoint_is_loaded_as_it_is(asked: str | None, all_installed: None) -> None:
    assert told(asked, quant_method="gptq", bits=4) == {}


@pytest.mark.parametrize(("method", "asked"), [("awq", "int8"), ("bitsandbytes", "bnb-4bit"), ("fp8", "gptq")])
def test_another_form_than_the_checkpoints_own_is_refused(method: str, asked: str, all_installed: None) -> None:
    with pytest.raises(UnservableModel, match=rf"quantised already \({method}\): leave out --quantization {asked}"):
        told(asked, quant_method=method)


@pytest.mark.parametrize(
    ("method", "packages"),
    [("gptq", "gptqmodel and optimum"), ("awq", "gptqmodel and accelerate"), ("hqq", "hqq")],
)
def test_what_is_missing_is_named(method: str, packages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "find_spec", lambda name: None)
    with pytest.raises(UnservableModel, match=f"quantised by {method} needs {packages}: pip install"):
        told(None, quant_method=method)
    with pytest.raises(UnservableModel, match="--quantization int8 needs bitsandbytes"):
        told("int8")


def test_a_form_that_transformers_does_not_know_is_refused() -> None:
    """transformers would skip it with a warning, and take codes for numbers."""
    with pytest.raises(UnservableModel, match="quantised by nonsense has a form of numbers that this version"):
        told(None, quant_method="nonsense")


@pytest.mark.parametrize("method", ["higgs", "spqr", "vptq", "fp_quant", "eetq", "nvfp4", "fbgemm_fp8"])
def test_what_needs_a_gpu_says_so(method: str, all_installed: None) -> None:
    with pytest.raises(UnservableModel, match=f"quantised by {method} needs a GPU"):
        told(None, quant_method=method)


@pytest.mark.parametrize("asked", ["int4", "{", "{}", '{"quant_method": "none of these"}'])
def test_an_unknown_form_is_refused(asked: str) -> None:
    with pytest.raises(UnservableModel, match="it cannot be loaded by --quantization"):
        told(asked)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_qloras_form_computes_in_the_type_of_activations() -> None:
    config = told("bnb-4bit", torch.bfloat16)["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert (config.bnb_4bit_use_double_quant, config.bnb_4bit_compute_dtype) == (True, torch.bfloat16)
    assert (
        told('{"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}')["quantization_config"].bnb_4bit_quant_type == "fp4"
    )


FORMS = {
    "bnb-4bit": ("bitsandbytes", "Params4bit"),
    "int8": ("bitsandbytes", "Int8Params"),
    "fp8": ("torchao", "Float8Tensor"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_plain_checkpoint_is_quantised_while_it_is_loaded(form: str, oracle: ModuleType, tmp_path: Path) -> None:
    package, kind = FORMS[form]
    pytest.importorskip(package)
    folder = oracle.tiny_model("llama", 0, tmp_path / "model")
    engine = Engine(EngineConfig(model=str(folder), device="cpu", dtype="float32", quantization=form))
    try:
        assert {type(layer.self_attn.q_proj.weight).__name__ for layer in engine._model.model.layers} == {kind}
        assert AutoConfig.from_pretrained(folder).to_dict().get("quantization_config") is None
    finally:
        engine.close()


def test_the_first_pass_leaves_4_bit_codes_as_they_were_loaded() -> None:
    bnb: Any = pytest.importorskip("bitsandbytes")
    linear = bnb.nn.Linear4bit(96, 64, bias=False, quant_type="nf4")  # rows of one block and a half
    linear.load_state_dict(nn.Linear(96, 64, bias=False).state_dict())
    model = nn.Sequential(linear.to("cpu")).eval().requires_grad_(False)
    linear.support_avx512bf16_for_cpu = True  # as it says on a processor with bfloat16 products
    keep_as_loaded(model)
    codes, x = linear.weight.data.clone(), torch.randn(3, 96)
    with torch.no_grad():
        product = model(x)
    assert torch.equal(linear.weight.data, codes)
    matrix = bnb.functional.dequantize_4bit(codes, linear.weight.quant_state)
    torch.testing.assert_close(product, x @ matrix.T)
