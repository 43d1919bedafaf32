"""Multimodal checkpoints served as their text models: tokens of the class that they have, adapters trained on it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import InvalidAdapter
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

MAX_TOKENS = 6
PROMPTS = [[5, 17, 42, 99, 7, 250, 31, 8], list(range(20, 90))]
NAMES = ["gemma3", "llava", "llava_next", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "idefics3"]
ATTENTION = ["q_proj", "k_proj", "v_proj"]  # the names of many a tower's linears, too
PLAIN_LINEARS = r".*(language_model|text_model).*\.(q_proj|o_proj|up_proj|down_proj)"

CONFIGS: dict[str, Callable[[], peft.PeftConfig]] = {
    "all_linear": lambda: peft.LoraConfig(r=4, target_modules="all-linear"),
    "named": lambda: peft.LoraConfig(r=3, use_dora=True, target_modules=[*ATTENTION, "lm_head"]),
    "pattern": lambda: peft.LoraConfig(r=5, target_modules=PLAIN_LINEARS.replace("up_proj|down_proj", "v_proj")),
    "ia3": lambda: peft.IA3Config(target_modules=ATTENTION, feedforward_modules=[]),
}


@contextmanager
def started(folder: Path, **options: Any) -> Iterator[Engine]:
    options = {"max_batch_tokens": 32, "page_size": 8, "max_loras": 8, **options}
    engine = Engine(EngineConfig(model=str(folder), device="cpu", dtype="float32", **options))
    try:
        yield engine
    finally:
        engine.close()


def upload(engine: Engine, adapter: Path) -> Any:
    inspection = engine.start_inspection(adapter.name, adapter)
    while not inspection.done():
        engine.poll()
    return inspection.result()


def answers(engine: Engine, digests: list[str]) -> dict[str, list[int]]:
    """Greedy tokens of each adapter and prompt, all in one batch. "" is the base."""
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    tokens: dict[str, list[int]] = {}
    for digest in ["", *digests]:
        for i, prompt in enumerate(PROMPTS):
            tokens[f"{digest}/{i}"] = []
            parts = [WeightedAdapter(digest)] if digest else []
            request = AddRequest(request_id=f"{digest}/{i}", prompt_token_ids=prompt, sampling=sampling, adapters=parts)
            engine.add_request(request)
    while engine.has_work():
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
    return tokens


def check(oracle: ModuleType, got: dict[str, list[int]], models: dict[str, Any]) -> None:
    for name, model in models.items():
        for i, prompt in enumerate(PROMPTS):
            answer = oracle.peft_generate(model, prompt, MAX_TOKENS)
            sure = next((i for i, margin in enumerate(answer.margins) if margin < oracle.CLEAR), MAX_TOKENS)
            assert got[f"{name}/{i}"][:sure] == answer.token_ids[:sure], f"{name}, prompt {i}"


def without_towers(folder: Path) -> None:
    """Leave garbage where the towers were: other shapes, other names, nothing."""
    file = folder / "model.safetensors"
    text = ("language_model", "text_model", "model.layers", "model.embed_tokens", "model.norm", "lm_head")
    kept = {key: value for key, value in load_file(file).items() if any(part in key for part in text)}
    assert len(kept) < len(load_file(file))
    save_file({**kept, "visual.patch_embed.proj.weight": torch.ones(3)}, file, {"format": "pt"})


@pytest.mark.parametrize("name", NAMES)
def test_text_and_adapters_of_the_class(name: str, oracle: ModuleType, tmp_path: Path) -> None:
    folder = oracle.wrapped_model(name, 1, tmp_path / "base")
    models = {"": oracle.read_model(folder)}
    for kind, make in CONFIGS.items():
        adapter = oracle.method_adapter(folder, tmp_path / kind, make(), seed=3)
        models[kind] = oracle.peft_model(folder, adapter)
    without_towers(folder)
    with started(folder) as engine:
        facts = {kind: upload(engine, tmp_path / kind) for kind in CONFIGS}
        got = answers(engine, list(CONFIGS))
    check(oracle, got, models)
    assert not facts["pattern"].unused
    assert all("layers" not in name or "language_model" not in name for name in facts["all_linear"].unused)
    assert facts["all_linear"].unused


def renamed(adapter: Path, folder: Path, names: dict[str, str]) -> Path:
    """Write an adapter once more with other beginnings of its keys; its configuration stays."""
    folder.mkdir()
    tensors = {}
    for key, tensor in load_file(adapter / "adapter_model.safetensors").items():
        own = key.removeprefix("base_model.model.")
        old = next((old for old in names if own.startswith(f"{old}.")), None)
        tensors["base_model.model." + (own if old is None else names[old] + own[len(old) :])] = tensor
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    return folder


OLD = {
    "model.language_model": "language_model.model",
    "lm_head": "language_model.lm_head",
    "model.vision_tower": "vision_tower",
}


def test_names_of_before_and_of_the_text_model(oracle: ModuleType, tmp_path: Path) -> None:
    """A decoder has several names. A configuration's expressions are for those that its tensors have."""
    folder = oracle.wrapped_model("gemma3", 2, tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        target_modules=[*ATTENTION, "lm_head", "embed_tokens"],
        rank_pattern={r"language_model\.layers\.1\.self_attn\.v_proj": 2},
        modules_to_save=["multi_modal_projector", "language_model.norm"],
    )
    adapter = oracle.method_adapter(folder, tmp_path / "new", config, seed=4)
    model = oracle.peft_model(folder, adapter)
    old = renamed(adapter, tmp_path / "old", OLD)
    raw = json.loads((old / "adapter_config.json").read_text())
    raw["rank_pattern"] = {r"^language_model\.model\.layers\.1\.self_attn\.v_proj": 2}
    raw["modules_to_save"] = ["multi_modal_projector", "language_model.model.norm"]
    (old / "adapter_config.json").write_text(json.dumps(raw))
    with started(folder) as engine:
        for each in (adapter, old):
            assert "model.multi_modal_projector" in upload(engine, each).unused
        got = answers(engine, ["new", "old"])
    check(oracle, got, {"new": model, "old": model})
    text = tmp_path / "text"
    model.unload()
    oracle.text_model(folder, text)
    with started(text) as engine:
        for each in (adapter, old):
            upload(engine, each)
        got = answers(engine, ["new", "old"])
        both = renamed(adapter, tmp_path / "both", {"model.language_model.layers.0": "language_model.model.layers.0"})
        with pytest.raises(InvalidAdapter, match="two ways"):
            upload(engine, both)
    check(oracle, got, {"new": oracle.peft_model(folder, adapter), "old": oracle.peft_model(folder, adapter)})


def test_images_are_refused_by_a_server_of_the_text(oracle: ModuleType, tmp_path: Path, device: str) -> None:
    """And a template that reads parts alone, as that of a processor, gets the texts."""
    folder = oracle.wrapped_model("qwen2_5_vl", 3, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    model = oracle.read_model(folder)
    server = oracle.RunningServer.start(folder, tmp_path / "state", tmp_path / "log", "--device", device)
    try:
        with httpx.Client(base_url=server.url, timeout=180) as client:
            for part in (
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            ):
                body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "the"}, part]}]}
                refused = client.post("/v1/chat/completions", json={"model": folder.name, **body})
                assert refused.status_code == 400
                assert f"not '{part['type']}': images, audio and video are not read here" in refused.text
            chat = {"model": folder.name, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
            said = client.post(
                "/v1/chat/completions",
                json={**chat, "return_token_ids": True, "messages": [{"role": "user", "content": "the other"}]},
            ).json()
    finally:
        server.stop()
    ids = said["prompt_token_ids"]
    assert oracle.tiny_tokenizer().decode(ids) == "the other"
    answer = oracle.peft_generate(model, ids, MAX_TOKENS)
    sure = next((i for i, margin in enumerate(answer.margins) if margin < oracle.CLEAR), MAX_TOKENS)
    assert said["choices"][0]["token_ids"][:sure] == answer.token_ids[:sure]
