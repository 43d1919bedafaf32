"""PEFT's methods on models that keep state beside keys and values: PEFT's tokens, or a refusal that says why."""

import random
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest

from peftserve.adapters.errors import AdapterError, UnsupportedAdapter
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

# Attention's and mixers' linears, others, and the embedding, as far as PEFT lets them.
KINDS = {
    "qwen3_5_text": (["in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "v_proj"], ["down_proj"], "embed_tokens"),
    "jamba": (["in_proj", "x_proj", "dt_proj", "out_proj", "q_proj"], ["down_proj"], "embed_tokens"),
}
# One of each kind of primitive, and all that is beside the modules.
METHODS = ["lora-dora", "lora-bias-all", "lora-saving-modules", "lora-trainable-tokens", "lora-embedding-and-head"]
METHODS += ["lora-alora", "ia3", "vera", "oft", "boft", "loha", "lokr", "hra", "miss-bat", "road-1", "shira", "c3a"]
METHODS += ["fourierft", "hira", "prefix-tuning", "cartridge", "prompt-tuning", "cpt", "multitask-prompt"]
REASONS = ("recurrent layers", "conv1d", "never calls")
# PEFT's own way with them fails in transformers' cache.
NEVER_RUN = {"prefix-tuning", "cartridge"}
SETTINGS = {"max_batch_tokens": 16, "page_size": 4, "kv_cache_tokens": 192, "max_loras": 4, "num_threads": 1}
MAX_TOKENS = 4
VIRTUAL = {"one": 1, "prompt": 5, "long": 21}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_methods_of_every_kind_on_linears_of_mixers(name: str, oracle: ModuleType, device: str, tmp_path: Path) -> None:
    """In chunks, with few slots for adapters and pages, and once more behind snapshots."""
    model, prompts = oracle.tiny_model(name, 3, tmp_path / "model"), _prompts()
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", **SETTINGS))
    served, refused = list[tuple[str, list[int], Any]](), dict[str, str]()
    try:
        for method in METHODS:
            entry = oracle.CATALOG[method]
            adapter = _made(oracle, model, tmp_path / method, entry, oracle.Kind(name, *KINDS[name]))
            if adapter is None:
                continue
            try:
                engine.inspect_adapter(method, adapter)
            except AdapterError as error:
                refused[method] = error.message
                continue
            assert method not in NEVER_RUN
            answers = oracle.peft_model(model, adapter)
            served += [(method, p, oracle.peft_generate(answers, p, MAX_TOKENS, entry.task)) for p in prompts]
        assert len({method for method, *_ in served}) > 15
        for method, why in refused.items():
            assert any(reason in why for reason in REASONS), (method, why)
        for _ in range(2):
            assert _differences(engine, served, oracle) == []
        engine.check_integrity()
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfm2", "falcon_h1", "jamba", "minimax"])
def test_virtual_tokens_bring_the_state_behind_them(name: str, oracle: ModuleType, device: str, tmp_path: Path) -> None:
    """Fewer of them than a convolution sees, and more than a chunk has; on models that forget at chunks, too."""
    model, prompts = oracle.tiny_model(name, 0, tmp_path / "model"), [[17], *_prompts()]
    adapters = {
        key: oracle.method_adapter(model, tmp_path / key, _virtual(length), randomize=_loud)
        for key, length in VIRTUAL.items()
    }
    wanted = [("", p, oracle.peft_generate(oracle.plain_model(model), p, MAX_TOKENS)) for p in prompts]
    for key, adapter in adapters.items():
        peft_model = oracle.peft_model(model, adapter)
        wanted += [(key, prompt, oracle.peft_generate(peft_model, prompt, MAX_TOKENS)) for prompt in prompts]
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", **SETTINGS))
    try:
        for key, adapter in adapters.items():
            facts = engine.inspect_adapter(key, adapter)
            assert facts.virtual_tokens == VIRTUAL[key]
        for _ in range(2):
            assert _differences(engine, wanted, oracle) == []
        stats = engine.stats()
        assert (stats.state_slots, stats.kv_pages_used) == (0, 0)
        engine.check_integrity()
    finally:
        engine.close()


def test_a_base_whose_virtual_tokens_peft_loses_is_told_of(oracle: ModuleType, device: str, tmp_path: Path) -> None:
    model = oracle.tiny_model("mamba2", 0, tmp_path / "model")
    adapter = oracle.method_adapter(model, tmp_path / "prompt", _virtual(5))
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", **SETTINGS))
    try:
        with pytest.raises(UnsupportedAdapter, match="past_key_values"):
            engine.inspect_adapter("prompt", adapter)
    finally:
        engine.close()


def _made(oracle: ModuleType, model: Path, folder: Path, entry: Any, kind: Any) -> Path | None:
    """Write an adapter; None if PEFT cannot make one for modules of these names, sizes and classes."""
    if (config := entry.make(kind)) is None:
        return None
    try:
        adapter: Path = oracle.method_adapter(model, folder, config, randomize=entry.randomize)
    except ValueError:
        return None
    return adapter


def _virtual(length: int) -> peft.PeftConfig:
    return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)


def _loud(_: str, parameter: Any, generator: Any) -> Any:
    return parameter.clone().normal_(generator=generator)


def _prompts() -> list[list[int]]:
    chance = random.Random(1)
    common = [chance.randrange(9, 300) for _ in range(21)]
    return [[*common, 7, 8, 40, 41], [*common, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]


def _differences(engine: Engine, wanted: list[tuple[str, list[int], Any]], oracle: ModuleType) -> list[str]:
    """Run all requests at once, and say where they differ from PEFT's answers. wanted: (adapter, prompt, answer)."""
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0)
    for i, (name, prompt, _) in enumerate(wanted):
        task = oracle.CATALOG[name].task or 0 if name in oracle.CATALOG else 0
        adapters = [WeightedAdapter(name, 1.0, task)] if name else []
        engine.add_request(AddRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling, adapters=adapters))
    found: list[list[Any]] = [[] for _ in wanted]
    while engine.has_work():
        for output in engine.step():
            assert output.error is None, (wanted[int(output.request_id)][0], output.error)
            found[int(output.request_id)] += output.logprobs or []
    return [text for one, reports in zip(wanted, found, strict=True) if (text := _difference(*one, reports, oracle))]


def _difference(name: str, prompt: list[int], answer: Any, reports: list[Any], oracle: ModuleType) -> str:
    rows = zip(reports, answer.token_ids, answer.logprobs, answer.margins, strict=True)
    for i, (report, token, logprob, margin) in enumerate(rows):
        if report.chosen.token_id != token:
            return "" if margin < oracle.CLEAR else f"{name} after {len(prompt)}: token {i} differs"
        if abs(report.chosen.logprob - logprob) > 2e-4 * max(1, abs(logprob)):
            return f"{name} after {len(prompt)}: logprob {i} is {report.chosen.logprob}, not {logprob}"
    return ""
