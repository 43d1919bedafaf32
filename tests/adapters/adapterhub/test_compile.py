"""Every method of AdapterHub against the logits of its own library; see `make_fixture.py`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.compile import CompiledAdapter, compile_adapter
from peftserve.adapters.primitives import Bottleneck, ParallelBottleneck

FIXTURE = Path(__file__).parent / "fixture"
PROMPT = [5, 17, 42, 9, 7, 25, 31, 8]
CASES = sorted(f"{file.parent.parent.name}/{file.parent.name}" for file in FIXTURE.glob("*/*/adapter_config.json"))
O_PROJ, DOWN = "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"


def compiled(base: Any, folder: Path, dtype: torch.dtype = torch.float32) -> CompiledAdapter:
    return compile_adapter(folder, base.table, dtype, model=base.model)


def test_the_fixture_is_all_there() -> None:
    assert len(CASES) == 39


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_adapterhub(case: str, hub_base: Callable[[str], Any], oracle: ModuleType) -> None:
    architecture, name = case.split("/")
    base = hub_base(architecture)
    bypass = compiled(base, FIXTURE / case).bypass
    wanted = torch.tensor(base.answers[name]["logits"])
    bare = torch.tensor(base.answers["base"]["logits"])
    assert (wanted - bare).abs().max() > 0.05, "the adapter changes nothing: this test could not fail"
    torch.testing.assert_close(oracle.naive_logits(base.model, bypass, PROMPT), wanted, rtol=1e-4, atol=1e-4)


def test_the_base_is_read_as_adapterhub_reads_it(hub_base: Callable[[str], Any]) -> None:
    base = hub_base("gpt2")
    with torch.inference_mode():
        got = base.model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(got, torch.tensor(base.answers["base"]["logits"]), rtol=1e-4, atol=1e-4)


def test_what_each_form_becomes(hub_base: Callable[[str], Any]) -> None:
    base = hub_base("llama")
    houlsby = compiled(base, FIXTURE / "llama/houlsby")
    assert set(houlsby.bypass.sites) == {name.format(i) for name in (O_PROJ, DOWN) for i in range(2)}
    assert {type(p) for ps in houlsby.bypass.sites.values() for p in ps} == {Bottleneck}
    assert (houlsby.facts.method, houlsby.facts.primitives) == ("BOTTLENECK", {"bottleneck": 4})
    (pfeiffer,) = compiled(base, FIXTURE / "llama/pfeiffer").bypass.sites[DOWN.format(1)]
    assert isinstance(pfeiffer, Bottleneck)
    assert pfeiffer.source == "model.layers.1.post_attention_layernorm"
    parallel = compiled(base, FIXTURE / "llama/parallel")
    assert {type(p) for ps in parallel.bypass.sites.values() for p in ps} == {ParallelBottleneck}
    assert parallel.facts.primitives == {"parallel_bottleneck": 2}
    left_out = compiled(base, FIXTURE / "llama/pfeiffer_both").bypass.sites
    assert set(left_out) == {O_PROJ.format(1), DOWN.format(1)}


def test_a_smaller_type_is_rounded_to_once(hub_base: Callable[[str], Any]) -> None:
    base = hub_base("llama")
    exact, half = (
        compiled(base, FIXTURE / "llama/plus", dtype).bypass.sites[DOWN.format(0)][0].tensors()
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert all(torch.equal(half[name], exact[name].bfloat16()) for name in exact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduction_factor": 2}, "takes: \\(8, 16\\)"),
        ({"reduction_factor": {"0": 4}}, "reduction_factor says nothing of layer 1 and has no default"),
        ({"mh_adapter": False, "output_adapter": False}, "the adapter is on no module"),
        ({"leave_out": [0, 1]}, "the adapter is on no module"),
        ({"leave_out": [1]}, "tensors that the configuration does not put on this base: model.layers.1.att"),
        ({"mh_adapter": False}, "does not put on this base: model.layers.0.attention_adapters.adapters.houlsby"),
        ({"scaling": "channel"}, "wants tensors that are missing: .*houlsby.scaling"),
    ],
)
def test_a_checkpoint_that_is_not_what_the_configuration_says(
    changes: dict[str, Any], message: str, hub_base: Callable[[str], Any], hub_adapter: Callable[..., Path]
) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        compiled(hub_base("llama"), hub_adapter("houlsby", **changes))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("end", ["adapter_down.0.weight", "adapter_up.bias", "scaling"])
def test_numbers_that_are_none(
    end: str, value: float, hub_base: Callable[[str], Any], hub_adapter: Callable[..., Path]
) -> None:
    folder = hub_adapter("plus")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[f"model.layers.1.output_adapters.adapters.plus.{end}"].flatten()[0] = value
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapter, match=f"{end} holds NaN or infinity"):
        compiled(hub_base("llama"), folder)


def with_union(folder: Path, *others: str) -> Path:
    """Return the union of an adapter's parts and those of others, by its configuration alone."""
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text())
    configs = [json.loads((FIXTURE / "llama" / name / "adapter_config.json").read_text())["config"] for name in others]
    file.write_text(json.dumps({**saved, "config": {"architecture": "union", "configs": [saved["config"], *configs]}}))
    return folder


def test_unions_that_are_none(hub_base: Callable[[str], Any], hub_adapter: Callable[..., Path], tmp_path: Path) -> None:
    base = hub_base("llama")
    with pytest.raises(InvalidAdapter, match=r"two parts of the union are on model\.layers\.0\.mlp\.down_proj"):
        compiled(base, with_union(hub_adapter("lora"), "lora"))
    folder = with_union(hub_adapter("houlsby"), "lora")
    tensors = load_file(folder / "adapter_model.safetensors")
    loras = load_file(FIXTURE / "llama/lora/adapter_model.safetensors")
    renamed = {key.replace(".loras.lora.", ".loras.houlsby."): tensor for key, tensor in loras.items()}
    save_file(tensors | renamed, folder / "adapter_model.safetensors")
    with pytest.raises(UnsupportedAdapter, match="a union of a bottleneck and a LoRA on model"):
        compiled(base, folder)


def test_a_prefix_whose_copies_differ(hub_base: Callable[[str], Any], hub_adapter: Callable[..., Path]) -> None:
    folder = hub_adapter("prefix")
    tensors = load_file(folder / "adapter_model.safetensors")
    one = {key: tensor for key, tensor in tensors.items() if key.startswith("model.prefix_tuning.")}
    save_file(one, folder / "adapter_model.safetensors")  # as a tool that keeps one of several copies has it
    assert compiled(hub_base("llama"), folder).bypass.prefix is not None
    next(value for key, value in tensors.items() if key.startswith("model.layers.0") and "wte" in key).mul_(2)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapter, match="are the same tensor, but differ"):
        compiled(hub_base("llama"), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 4}, "its layers see a window, which the prefix would leave"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "change with the length"),
    ],
)
def test_bases_on_which_a_prefix_means_something_else(
    changes: dict[str, Any], message: str, hub_base: Callable[[str], Any]
) -> None:
    base = hub_base("llama")
    model = type(base.model)(type(base.model.config)(**(base.model.config.to_dict() | changes)))
    with pytest.raises(UnsupportedAdapter, match=message):
        compile_adapter(FIXTURE / "llama/prefix", base.table, torch.float32, model=model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prefix_that_leaves_no_position(architecture: str, hub_base: Callable[[str], Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURE / architecture / "prefix", tmp_path / "prefix"))
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text())
    saved["config"]["prefix_length"] = 64
    file.write_text(json.dumps(saved))
    with pytest.raises(AdapterTooLarge, match="prefix_length is 64, and this base has 64 positions"):
        compiled(hub_base(architecture), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"use_dora": True}, "DoRA on transformer.h.0.attn.c_attn"), ({"vera_d": 0.1}, "VERA on transformer.h.0.attn")],
)
def test_what_the_library_cannot_run_itself(
    changes: dict[str, Any], message: str, hub_base: Callable[[str], Any], hub_adapter: Callable[..., Path]
) -> None:
    folder = hub_adapter("lora", model_type="gpt2", **changes)
    with pytest.raises(UnsupportedAdapter, match=message):
        compiled(hub_base("gpt2"), folder)


def test_a_base_of_another_kind(hub_base: Callable[[str], Any]) -> None:
    with pytest.raises(InvalidAdapter, match=r"for a base with model\.layers, which this one lacks"):
        compiled(hub_base("gpt2"), FIXTURE / "llama/houlsby")
    with pytest.raises(InvalidAdapter, match=r"for a base with transformer\.h, which this one lacks"):
        compiled(hub_base("llama"), FIXTURE / "gpt2/houlsby")
