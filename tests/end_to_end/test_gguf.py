"""GGUF files as bases: what PEFT gives on the model that transformers makes of the file."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from peftserve.server.cli.main import main
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

MAX_TOKENS = 6
TEXT = "hello the nation<|user|>there"
METHODS = ["lora", "lora-dora", "ia3", "prompt-tuning"]
NEEDS_PACKAGE = ["llama", "qwen2"]


def _bases(oracle: ModuleType, name: str, folder: Path) -> tuple[Path, Path]:
    """Return a GGUF file, and the folder of the plain model that its blocks mean."""
    if name in NEEDS_PACKAGE:
        pytest.importorskip("gguf")
    file: Path = oracle.gguf_model(oracle.tiny_model(name, 2, folder / "plain"), folder / "base" / f"{name}-Q8_0.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    for held, leftover in ((model.config, "quantization_config"), (model, "hf_quantizer")):  # it is plain by now
        vars(held).pop(leftover, None)
    model.save_pretrained(folder / "meant")
    return file, folder / "meant"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfm2", *NEEDS_PACKAGE])
def test_adapters_on_a_gguf_file(name: str, oracle: ModuleType, tmp_path: Path) -> None:
    file, meant = _bases(oracle, name, tmp_path)
    kind, wanted = oracle.kind_of(name), {"": oracle.plain_model(meant)}
    methods = [method for method in METHODS if name != "lfm2" or method != "prompt-tuning"]  # not on a base with states
    model = str(file.parent if name == "qwen2" else file)
    engine = Engine(EngineConfig(model=model, device="cpu", dtype="float32", max_loras=4))
    try:
        for method in methods:
            entry = oracle.CATALOG[method]
            adapter = oracle.method_adapter(meant, tmp_path / method, entry.make(kind), randomize=entry.randomize)
            wanted[method] = oracle.peft_model(meant, adapter)
            engine.inspect_adapter(method, adapter)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        prompt = Tokenizer.from_str(engine.info.tokenizer).encode(TEXT).ids
        got = _answers(engine, prompt, list(wanted))
    finally:
        engine.close()
    assert prompt == tokenizer(TEXT)["input_ids"]
    assert engine.info.chat_template == tokenizer.chat_template
    assert engine.info.eos_token_ids == [tokenizer.eos_token_id]
    assert engine.info.model_name == ("base" if name == "qwen2" else file.stem)
    assert engine.info.fingerprint["numbers"]
    for method, model_of_method in wanted.items():
        known: Any = oracle.peft_generate(model_of_method, prompt, MAX_TOKENS)
        sure = next((i for i, margin in enumerate(known.margins) if margin < 1e-3), MAX_TOKENS)
        assert got[method][:sure] == known.token_ids[:sure], method


def _answers(engine: Engine, prompt: list[int], digests: list[str]) -> dict[str, list[int]]:
    """Return the greedy tokens of each adapter, all in one batch. "" is the base."""
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    for digest in digests:
        parts = [WeightedAdapter(digest)] if digest else []
        engine.add_request(AddRequest(request_id=digest, prompt_token_ids=prompt, sampling=sampling, adapters=parts))
    tokens: dict[str, list[int]] = {digest: [] for digest in digests}
    while engine.has_work():
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
    return tokens


def test_another_form_and_a_missing_package_are_named(
    oracle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = oracle.tiny_model("llama", 2, tmp_path / "plain")
    file = oracle.gguf_model(plain, tmp_path / "llama.gguf")
    monkeypatch.setattr(modeling_gguf_pytorch_utils, "is_gguf_available", lambda *_: False)
    with pytest.raises(UnservableModel, match="needs gguf: pip install gguf"):
        Engine(EngineConfig(model=str(file), device="cpu", dtype="float32"))
    hybrid = oracle.gguf_model(oracle.tiny_model("lfm2", 2, tmp_path / "hybrid"), tmp_path / "lfm2.gguf")
    with pytest.raises(UnservableModel, match="quantised already"):
        Engine(EngineConfig(model=str(hybrid), device="cpu", dtype="float32", quantization="int8"))


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("a-Q4_K_M.gguf", "a-Q8_0.gguf", "mmproj-a.gguf", "b-00001-of-00002.gguf"):
        (folder / name).write_bytes(b"GGUF")
    (tmp_path / "text.gguf").write_text(json.dumps({}))
    said = {
        str(folder): "several GGUF files: name one of them",
        str(folder / "missing.gguf"): "there is no file",
        str(folder / "b-00001-of-00002.gguf"): "one of several parts",
        str(folder / "a-Q8_0.gguf"): "cannot be read as a GGUF file",
        str(tmp_path / "text.gguf"): "cannot be read as a GGUF file",
    }
    for model, part in said.items():
        assert main(["serve", model]) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
