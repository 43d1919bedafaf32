"""Quantised bases from their checkpoints to tokens: what PEFT gives on the base that the codes mean."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

MAX_TOKENS = 5
PROMPT = [5, 17, 42, 99, 7, 250, 31, 8]
METHODS = ["lora", "lora-dora", "lora-pissa", "hra", "prompt-tuning", "prefix-tuning"]


@pytest.fixture
def plain(oracle: ModuleType, tmp_path: Path) -> Path:
    folder: Path = oracle.tiny_model("llama", 4, tmp_path / "plain")
    return folder


def start(folder: Path) -> Engine:
    return Engine(EngineConfig(model=str(folder), device="cpu", dtype="float32", max_loras=8))


def upload(engine: Engine, digest: str, adapter: Path) -> None:
    inspection = engine.start_inspection(digest, adapter)
    while not inspection.done():
        engine.poll()
    inspection.result()


def sure_tokens(oracle: ModuleType, model: Any, prompt: list[int], margin: float) -> list[int]:
    """Return a model's own greedy tokens up to the first that stands above the next best by less than `margin`."""
    answer: Any = oracle.peft_generate(model, prompt, MAX_TOKENS)
    tokens: list[int] = answer.token_ids
    return tokens[: next((i for i, m in enumerate(answer.margins) if m < margin), MAX_TOKENS)]


def answers(engine: Engine, digests: list[str]) -> dict[str, list[int]]:
    """Return the greedy tokens of each adapter, all in one batch. "" is the base."""
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    for digest in ["", *digests]:
        parts = [WeightedAdapter(digest)] if digest else []
        engine.add_request(AddRequest(request_id=digest, prompt_token_ids=PROMPT, sampling=sampling, adapters=parts))
    tokens: dict[str, list[int]] = {digest: [] for digest in ["", *digests]}
    while engine.has_work():
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
    return tokens


@pytest.mark.parametrize("form", ["class", "tensor", "hook"])
def test_every_way_to_read_a_base_in_one_batch(form: str, plain: Path, oracle: ModuleType, tmp_path: Path) -> None:
    quantised, meant = oracle.quantised_model(plain, tmp_path, form)
    kind, wanted = oracle.kind_of("llama"), {"": oracle.plain_model(meant)}
    engine = start(quantised)
    try:
        for name in METHODS:
            entry = oracle.CATALOG[name]
            adapter = oracle.method_adapter(meant, tmp_path / name, entry.make(kind), randomize=entry.randomize)
            upload(engine, name, adapter)
            wanted[name] = oracle.peft_model(meant, adapter)
        got = answers(engine, METHODS)
    finally:
        engine.close()
    for name, model in wanted.items():
        wanted_tokens = sure_tokens(oracle, model, PROMPT, 1e-3)
        assert got[name][: len(wanted_tokens)] == wanted_tokens, name
        assert wanted_tokens


def test_inputs_are_quantised_in_every_pass(plain: Path, oracle: ModuleType, tmp_path: Path) -> None:
    """The base is what transformers makes of it, and its linears are neither packed nor joined."""
    quantised, meant = oracle.quantised_model(plain, tmp_path, "inputs")
    engine = start(quantised)
    try:
        pissa = oracle.method_adapter(meant, tmp_path / "a", oracle.CATALOG["lora-pissa"].make(oracle.kind_of("llama")))
        with pytest.raises(UnsupportedAdapter, match="PiSSA is not supported on this base"):
            upload(engine, "pissa", pissa)
        got = answers(engine, [])[""]
    finally:
        engine.close()
    wanted = sure_tokens(oracle, oracle.plain_model(quantised), PROMPT, 0.05)
    assert got[: len(wanted)] == wanted


def test_neighbours_change_nothing_where_a_scale_is_shared(plain: Path, oracle: ModuleType, tmp_path: Path) -> None:
    """A linear that takes one scale from all rows of a call runs each sequence by itself, as transformers does."""
    quantised, _ = oracle.quantised_model(plain, tmp_path, "mixing")
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    prompts = [PROMPT, PROMPT[::-1], [3, 3, 3], [250]]
    tokens: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    engine = start(quantised)
    try:
        for i, prompt in enumerate(prompts):
            engine.add_request(AddRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling))
        while engine.has_work():
            for output in engine.step():
                tokens[output.request_id] += output.token_ids
    finally:
        engine.close()
    model = oracle.plain_model(quantised)
    for i, prompt in enumerate(prompts):
        wanted = sure_tokens(oracle, model, prompt, 0.05)
        assert tokens[str(i)][: len(wanted)] == wanted


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_experts_whose_codes_would_be_taken_for_weights_are_refused(
    kind: str, oracle: ModuleType, tmp_path: Path
) -> None:
    """transformers joins what lies under the names of experts' weights, and only warns of scales that it leaves out."""
    quantised, _ = oracle.quantised_model(oracle.tiny_model(kind, 4, tmp_path / "plain"), tmp_path, "class")
    with pytest.raises(UnservableModel, match=r"scales of quantised experts .model\.layers\.\d\.mlp\.experts\."):
        start(quantised)
