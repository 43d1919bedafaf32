"""On a quantised base every method gives what PEFT gives on the base that the codes mean, or is refused by name."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.peft.twin import twin

IDS = [5, 17, 42, 99, 7, 250, 31, 8]
WEIGHT_READERS = {  # by the name that a refusal says
    "lora-pissa": "PiSSA",
    "lora-olora": "OLoRA",
    "lora-kasa": "KaSA",
    "hra": "HRA",
    "miss-bat": "MISS",
    "deft": "DEFT",
    "peanut": "PEANUT",
    "osf": "OSF",
    "psoft": "PSOFT",
    "frod": "FROD",
    "hira": "HiRA",
    "glora": "GLORA",
}
BASE_RUNNERS = ["prompt-tuning", "prefix-tuning", "cpt", "multitask-prompt", "cartridge"]
QUIETER = {"lora-olora": 0.3}
"""How much of what is drawn is added, where all of it makes the base amplify what last digits differ by."""
OTHERS = ["lora", "lora-dora", "boft", "ia3", "lora-saving-modules", "lora-trainable-tokens"]

World = tuple[Path, PreTrainedModel]
"""The folder of the plain model that a quantised one means, and the quantised one."""


@pytest.fixture(scope="module")
def worlds(llama: Any, oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    @cache
    def make(form: str) -> World:
        quantised, meant = oracle.quantised_model(llama.folder, tmp_path_factory.mktemp(form), form)
        model = AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.float32).eval().requires_grad_(False)
        with torch.no_grad():
            model(torch.tensor([IDS]))
        return meant, model

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "name"),
    [
        *product(["class", "hook"], [*WEIGHT_READERS, *BASE_RUNNERS, "adaption-prompt", "supertuning"]),
        *product(["class"], OTHERS),
    ],
)
def test_it_is_what_peft_computes_on_what_the_codes_mean(
    worlds: Callable[[str], World], llama: Any, oracle: ModuleType, tmp_path: Path, form: str, name: str
) -> None:
    (meant, model), entry = worlds(form), oracle.CATALOG[name]
    config = entry.make(oracle.kind_of("llama"))

    def randomize(parameter_name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn: torch.Tensor = entry.randomize(parameter_name, parameter, generator)
        return torch.lerp(parameter, drawn, QUIETER.get(name, 1.0))

    adapter = oracle.method_adapter(meant, tmp_path / "adapter", config, randomize=randomize)
    bypass = compile_adapter(adapter, llama.table, torch.float32, model=twin(model), task=entry.task or 0).bypass
    inputs = {} if entry.task is None else {"task_ids": torch.tensor([entry.task])}
    expected = oracle.peft_logits(meant, adapter, IDS, **inputs)
    torch.testing.assert_close(oracle.naive_logits(model, bypass, IDS), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", [*WEIGHT_READERS, "supertuning", "shira", "adaption-prompt"])
def test_parts_of_weights_are_refused_where_inputs_are_quantised(
    worlds: Callable[[str], World], llama: Any, oracle: ModuleType, tmp_path: Path, name: str
) -> None:
    """The base multiplies rounded inputs and a bypass exact ones: a subtracted part of the weight would not cancel."""
    (meant, model), entry = worlds("inputs"), oracle.CATALOG[name]
    config = entry.make(oracle.kind_of("llama"))
    adapter = oracle.method_adapter(meant, tmp_path / "adapter", config, randomize=entry.randomize)
    with pytest.raises(
        UnsupportedAdapter, match=r"not supported on this base.*quantised \(codes-and-scales\)"
    ) as caught:
        compile_adapter(adapter, llama.table, torch.float32, model=twin(model))
    assert WEIGHT_READERS.get(name, "") in caught.value.message


def test_dora_takes_norms_alone(worlds: Callable[[str], World], llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    """It may, where inputs are quantised: PEFT does the same."""
    meant, model = worlds("inputs")
    adapter = oracle.method_adapter(meant, tmp_path, oracle.CATALOG["lora-dora"].make(oracle.kind_of("llama")))
    got = compile_adapter(adapter, llama.table, torch.float32, model=twin(model)).bypass
    plain = AutoModelForCausalLM.from_pretrained(meant, dtype=torch.float32)
    expected = compile_adapter(adapter, llama.table, torch.float32, model=plain).bypass
    for name, primitives in expected.sites.items():
        for own, primitive in zip(got.sites[name], primitives, strict=True):
            for tensor, other in zip(vars(own).values(), vars(primitive).values(), strict=True):
                torch.testing.assert_close(tensor, other)


@pytest.mark.parametrize("name", [*BASE_RUNNERS, "p-tuning", "prefix-projection", "adaption-prompt"])
def test_virtual_tokens_are_refused_where_the_base_cannot_be_run(
    worlds: Callable[[str], World], llama: Any, oracle: ModuleType, tmp_path: Path, name: str
) -> None:
    (meant, model), entry = worlds("class"), oracle.CATALOG[name]
    adapter = oracle.method_adapter(meant, tmp_path / "adapter", entry.make(oracle.kind_of("llama")))
    with pytest.raises(UnsupportedAdapter, match=r"^[A-Z_]+ is not supported on this base, quantised"):
        compile_adapter(adapter, llama.table, torch.float32, model=model, runs=False)


def test_modules_that_would_replace_codes_are_refused(
    worlds: Callable[[str], World], llama: Any, oracle: ModuleType, tmp_path: Path
) -> None:
    (meant, model) = worlds("class")
    kind = oracle.kind_of("llama")
    config = oracle.CATALOG["lora"].make(kind)
    config.modules_to_save = ["up_proj"]
    config.target_modules = {"q_proj"}
    adapter = oracle.method_adapter(meant, tmp_path / "adapter", config)
    with pytest.raises(UnsupportedAdapter, match=r"it replaces a module that is quantised \(codes-and-scales\)"):
        compile_adapter(adapter, llama.table, torch.float32, model=model)
