from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.peft.wrappers import unwrapped
from peftserve.adapters.sites import Site, SiteKind, SiteTable

PREFIX = "base_model.model."


def compiled(folder: Path, base: Any) -> Any:
    return compile_adapter(folder, base.table, torch.float32, model=base.model).bypass.sites


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: f"module.{key}",
        lambda key: f"module.module.{key}",
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"_orig_mod.module.{key}",
        lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
        lambda key: key.replace(PREFIX, f"{PREFIX}module."),
        lambda key: key.replace(".self_attn", "._orig_mod.self_attn"),
    ],
)
def test_names_of_wrapped_models(
    wrap: Callable[[str], str], method: str, llama: Any, oracle: Any, tmp_path: Path
) -> None:
    import peft

    config = {"lora": peft.LoraConfig(target_modules=["q_proj"]), "ia3": peft.IA3Config(target_modules=["k_proj"])}
    config["ia3"].feedforward_modules = []
    oracle.method_adapter(llama.folder, tmp_path, config[method])
    wanted, file = compiled(tmp_path, llama), tmp_path / "adapter_model.safetensors"
    save_file({wrap(key): tensor for key, tensor in load_file(file).items()}, file)
    got = compiled(tmp_path, llama)
    assert got.keys() == wanted.keys()
    for name, (primitive,) in got.items():
        for field, tensor in primitive.tensors().items():
            assert torch.equal(tensor, wanted[name][0].tensors()[field])


@pytest.mark.parametrize("marker", ["module.", "_orig_mod."])
def test_what_only_some_have_stays(marker: str) -> None:
    keys = [f"{PREFIX}{marker}a.lora_A.weight", f"{PREFIX}a.lora_B.weight"]
    assert unwrapped(keys, SiteTable({})) == {key: key for key in keys}


def test_a_base_may_call_a_part_module() -> None:
    table = SiteTable({"module.q": Site("module.q", SiteKind.LINEAR, 4, 4)})
    key = f"{PREFIX}module.q.lora_A.weight"
    assert unwrapped([key], table) == {key: key}


def test_names_that_are_the_same_then() -> None:
    with pytest.raises(InvalidAdapter, match="the same name twice"):
        unwrapped(["_orig_mod.a.b", "a._orig_mod.b"], SiteTable({}))
