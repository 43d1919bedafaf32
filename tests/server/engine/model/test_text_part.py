"""What of a multimodal checkpoint is read, and what its class gives for text without the rest."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from peftserve.server.config import EngineConfig
from peftserve.server.engine.model import text_part
from peftserve.server.engine.model.checkpoint import read_model
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.loading import load_model
from peftserve.server.engine.model.text_part import Unread, unread_modules, wrapped_class

IDS = torch.arange(3, 63)[None]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS, use_cache=False).logits[0]
    return out


def rewritten(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("gemma3", ["model.vision_tower", "model.multi_modal_projector"]),
        ("llava_next", ["model.vision_tower", "model.multi_modal_projector"]),
        ("qwen3_vl_moe", ["model.visual"]),
    ],
)
def test_towers_are_not_read(name: str, absent: list[str], oracle: ModuleType, tmp_path: Path) -> None:
    """Nor is a parameter of what holds the decoder, such as LLaVA-NeXT's image_newline, needed."""
    folder = oracle.wrapped_model(name, 0, tmp_path / "model")
    whole = oracle.read_model(folder)
    text = tuple(key for key, _ in whole.named_parameters() if "language_model" in key or "lm_head" in key)
    garbage = {key: torch.full((1,), torch.nan) for key, _ in whole.named_parameters() if key not in text}
    assert garbage
    rewritten(folder, lambda tensors: tensors | {key: value for key, value in garbage.items() if key in tensors})
    model = read_model(str(folder), torch.float32, False)
    assert type(model) is type(whole)
    assert torch.equal(logits(model), logits(whole))
    assert [key for key, module in model.named_modules() if isinstance(module, Unread)] == absent
    assert {key for key, _ in model.named_parameters()} == {
        key for key in text if key in dict(model.named_parameters())
    }
    names = {key for key, _ in whole.named_modules() if any(f"{key}.".startswith(f"{root}.") for root in absent)}
    assert unread_modules(model) == names
    assert model.get_submodule(absent[0]).device == model.device, "some classes ask for it"
    with pytest.raises(RuntimeError, match=f"{absent[0]} is not loaded"):
        model.get_submodule(absent[0])(torch.zeros(1))


def test_the_text_model_must_be_whole(oracle: ModuleType, tmp_path: Path) -> None:
    folder = oracle.wrapped_model("llava", 0, tmp_path / "model")
    key = "language_model.model.layers.1.mlp.up_proj.weight"
    rewritten(folder, lambda tensors: {name: value for name, value in tensors.items() if name != key})
    with pytest.raises(
        UnservableModel, match=r"lacks 1 of .* LlavaForConditionalGeneration: model.*layers.1.mlp.up_proj.weight"
    ):
        load_model(EngineConfig(model=str(folder), device="cpu"))


def test_which_class_is_taken() -> None:
    assert wrapped_class(transformers.LlamaConfig(), False) is None
    assert wrapped_class(transformers.Llama4Config(), False) is None, "its text has a class of its own"
    found = wrapped_class(transformers.Qwen2_5_VLConfig(), False)
    assert found is not None
    assert found.own is transformers.Qwen2_5_VLForConditionalGeneration
    remote = transformers.Qwen2_5_VLConfig(auto_map={"AutoModelForCausalLM": "a.B"})
    assert wrapped_class(remote, True) is None
    assert wrapped_class(remote, False) is not None
    heard = wrapped_class(transformers.Qwen2AudioConfig(), False)
    assert heard is not None
    assert heard.own is transformers.Qwen2AudioForConditionalGeneration


def test_what_a_class_calls_for_text_is_kept(monkeypatch: pytest.MonkeyPatch, oracle: ModuleType) -> None:
    """As in Gemma 3n, whose projectors embed tokens of their own; and where the class does not run without numbers."""
    own = transformers.LlavaForConditionalGeneration
    forward = own.forward

    def calls(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        self.model.multi_modal_projector.linear_1(torch.zeros(1, 32, device=input_ids.device))
        if fails:
            raise ValueError("of numbers")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(own, "forward", calls)
    for broken in (False, True):
        fails = broken
        with torch.device("meta"):
            model = text_part.text_part(own)(oracle.WRAPPED["llava"]())
        roots = [key for key, module in model.named_modules() if isinstance(module, Unread)]
        assert roots == ["model.vision_tower"]
        assert model.get_output_embeddings() is model.lm_head


def test_a_class_that_counts_positions_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    """As Kosmos-2.5 does, from its padding token's id on: the engine counts from 0."""
    own = transformers.LlamaForCausalLM
    prepare = own.prepare_inputs_for_generation

    def counts(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        return prepare(self, input_ids, **kwargs) | {"position_ids": torch.arange(input_ids.shape[1])[None] * 2}

    folder = tiny()
    monkeypatch.setattr(own, "prepare_inputs_for_generation", counts)
    with pytest.raises(UnservableModel, match="with positions from 0 on are off"):
        load_model(EngineConfig(model=str(folder), device="cpu"))
