from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.loading import load_model
from peftserve.server.engine.model.placement import choose_device, choose_dtype
from peftserve.server.engine.private.torch_private import multiplies_bfloat16

Tiny = Callable[..., Path]


def test_cuda_without_a_gpu_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnservableModel, match="--device cuda was asked for, but torch sees no GPU"):
        load_model(EngineConfig(str(tiny()), device="cuda"))
    assert choose_device("auto") == torch.device("cpu")


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("stored", "asked", "used"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16 if multiplies_bfloat16() else torch.float32),
        ("bfloat16", "bfloat16", torch.bfloat16),
        ("float16", "auto", torch.float32),
        ("float16", "float16", torch.float16),
        ("float32", "bfloat16", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
    ],
)
def test_the_type_on_a_cpu(tiny: Tiny, stored: str, asked: str, used: torch.dtype) -> None:
    folder = tiny()
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, stored)).save_pretrained(folder)
    loaded = load_model(EngineConfig(str(folder), device="cpu", dtype=asked))
    assert loaded.dtype == used
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {used}


def test_float16_stays_on_a_gpu() -> None:
    config = transformers.LlamaConfig(dtype="float16")
    assert choose_dtype("auto", config, torch.device("cuda")) == torch.float16
