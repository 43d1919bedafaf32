"""LoRA on parameters by name: each delta is PEFT's, and what cannot be served is refused."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import ParamWrapper

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import ExpertLowRank, LowRank

UP, DOWN = "experts.gate_up_proj", "experts.down_proj"
CONFIGS: dict[str, dict[str, Any]] = {
    "both": {"r": 4, "lora_alpha": 6, "target_parameters": [DOWN, UP]},
    "one": {"r": 3, "use_rslora": True, "target_parameters": [UP]},
    "one layer": {"r": 2, "target_parameters": ["layers.1.mlp." + DOWN]},
    "patterns": {"target_parameters": [UP, DOWN], "rank_pattern": {DOWN: 2}, "alpha_pattern": {"gate_up_proj": 5}},
    "with attention": {"target_parameters": [UP, DOWN], "target_modules": ["q_proj"]},
    "names that are not there": {"target_parameters": [UP, "experts.w1", "norm.scale"], "target_modules": ["none"]},
    "nothing but attention": {"target_parameters": ["experts.up"], "target_modules": ["q_proj"]},
}


def _config(options: dict[str, Any]) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", **{"target_modules": [], **options})


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_each_delta_is_that_of_peft(mixtral: Any, oracle: ModuleType, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = oracle.method_adapter(mixtral.folder, tmp_path, _config(options))
    compiled = compile_adapter(adapter, mixtral.table, torch.float32)
    bypass, idle = compiled.bypass, sorted({*options["target_parameters"]} - {UP, DOWN, "layers.1.mlp." + DOWN})
    noted = [sorted(note.rpartition("ignored there: ")[2].split(", ")) for note in compiled.facts.notes]
    assert noted == ([idle] if idle else [])  # PEFT saves a set, in no order
    found = {(s, p.parameter): p for s, ps in bypass.sites.items() for p in ps if isinstance(p, ExpertLowRank)}
    compared = 0
    for name, module in oracle.peft_model(mixtral.folder, adapter).base_model.model.named_modules():
        if isinstance(module, ParamWrapper):
            primitive = found[name.replace(".base_layer", ""), module.parameter_name]
            torch.testing.assert_close(primitive.b @ primitive.a, module.get_delta_weight("default"))
            compared += 1
    assert compared == len(found)
    lows = [p for ps in bypass.sites.values() for p in ps if isinstance(p, LowRank)]
    assert bool(lows) == (options.get("target_modules") == ["q_proj"])
    assert bypass.rank == max(p.rank for p in (*found.values(), *lows)) > 0


def test_what_cannot_be_served_is_refused(mixtral: Any, tiny_base: Any, oracle: ModuleType, tmp_path: Path) -> None:
    adapter = oracle.method_adapter(mixtral.folder, tmp_path, _config({"target_parameters": [UP, DOWN]}))
    with pytest.raises(AdapterError, match="no such weight of a linear, and no such stacked weights of experts"):
        compile_adapter(adapter, tiny_base("mixtral").table, torch.float32)
    with pytest.raises(AdapterError, match="rank 8 is over the server's limit of 4"):
        compile_adapter(adapter, mixtral.table, torch.float32, max_rank=4)
    config = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text(config.replace('"r": 8', '"r": 7'))
    with pytest.raises(AdapterError, match=r"rank 7 of 4 experts at .* takes"):
        compile_adapter(adapter, mixtral.table, torch.float32)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"r": 4, "target_parameters": ["q_proj.weight", "layers.1.mlp.down_proj.weight", "lm_head.weight"]}),
        ("llama", {"r": 4, "target_parameters": ["q_proj.weight"], "rank_pattern": {"0.self_attn.q_proj.weight": 2}}),
        ("gpt2", {"r": 4, "target_parameters": ["c_attn.weight"]}),  # stored transposed
    ],
)
def test_the_weight_of_a_linear_is_the_linear(
    tiny_base: Any, oracle: ModuleType, tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    base = tiny_base(architecture)
    adapter = oracle.method_adapter(base.folder, tmp_path, _config(options))
    bypass = compile_adapter(adapter, base.table, torch.float32).bypass
    wrapped = {
        name: module
        for name, module in oracle.peft_model(base.folder, adapter).base_model.model.named_modules()
        if isinstance(module, ParamWrapper)
    }
    assert wrapped
    for name, module in wrapped.items():
        (primitive,) = bypass.sites[name]
        assert isinstance(primitive, LowRank)
        delta = primitive.b @ primitive.a
        wanted = module.get_delta_weight("default")
        torch.testing.assert_close(delta.T if architecture == "gpt2" else delta, wanted)
    assert len(bypass.sites) == len(wrapped)
