"""Models of older classes, whose modules compute attention themselves, give the text that they give by themselves."""

from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForCausalLM

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.private.older_attention_private import OLDER
from peftserve.server.wire.messages import AddRequest, SamplingParams

ARCHITECTURES = ["falcon", "falcon_multi_query", "gptj", "codegen", "gpt_neo", "gpt_neox_japanese", "bloom", "mpt"]
ARCHITECTURES += ["xglm", "openai-gpt", "rembert", "megatron-bert"]
PROMPTS = [[(7 * i + length) % 80 + 9 for i in range(length)] for length in (1, 12, 60)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_transformers_own(oracle: ModuleType, device: str, tmp_path: Path, architecture: str) -> None:
    """In chunks, three prompts beside each other, some past a window of 24 tokens."""
    folder = oracle.tiny_model(architecture, 0, tmp_path)
    reference = oracle.PeftOracle(folder)
    wanted = {str(i): reference.greedy(prompt, 6).token_ids for i, prompt in enumerate(PROMPTS)}
    found: dict[str, list[int]] = {name: [] for name in wanted}
    engine = Engine(EngineConfig(model=str(folder), device=device, dtype="float32", max_batch_tokens=16, page_size=8))
    try:
        for name, prompt in zip(wanted, PROMPTS, strict=True):
            sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
            engine.add_request(AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, adapters=[]))
        while engine.has_work():
            for output in engine.step():
                found[output.request_id] += output.token_ids
    finally:
        engine.close()
    assert found == wanted


def test_every_row_has_a_model_here(oracle: ModuleType) -> None:
    classes = set()
    for architecture in ARCHITECTURES:
        model = AutoModelForCausalLM.from_config(oracle.ARCHITECTURES[architecture]())
        classes |= {f"{type(module).__module__}.{type(module).__qualname__}" for module in model.modules()}
    assert OLDER.keys() <= classes
