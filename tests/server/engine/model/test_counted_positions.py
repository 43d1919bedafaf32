"""Decoders that count positions by themselves are told those of each row; others are left alone."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model.counted_positions import give_positions
from peftserve.server.wire.messages import AddRequest, SamplingParams

SIZES = {"vocab_size": 80, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
COUNTING: dict[str, type[PretrainedConfig]] = {
    "learned": transformers.BartConfig,
    "learned, norms first": transformers.MBartConfig,
    "sines": transformers.PegasusConfig,
}


def save(config: PretrainedConfig, folder: Path) -> transformers.PreTrainedModel:
    model: transformers.PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    model.save_pretrained(folder)
    return model


def greedy(model: transformers.PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return out[0, len(prompt) :].tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", COUNTING)
def test_sequences_of_other_lengths_side_by_side(kind: str, tmp_path: Path) -> None:
    model = save(COUNTING[kind](**SIZES, max_position_embeddings=64, pad_token_id=1), tmp_path)
    prompts = [[5, 9, 33], [(7 * i) % 70 + 4 for i in range(21)], [61, 8, 8, 50, 12, 4, 30]]
    expected = [greedy(model, prompt, 5) for prompt in prompts]
    engine = Engine(
        EngineConfig(str(tmp_path), device="cpu", dtype="float32", kv_cache_tokens=512, max_batch_tokens=12)
    )
    got: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
        engine.add_request(AddRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling, adapters=[]))
    while engine.has_work():
        for output in engine.step():
            got.setdefault(output.request_id, []).extend(output.token_ids)
    engine.close()
    assert [got[str(i)] for i in range(len(prompts))] == expected


def test_a_model_that_takes_positions_is_left_alone() -> None:
    config = transformers.OPTConfig(vocab_size=60, hidden_size=16, ffn_dim=16, num_hidden_layers=1)
    config.num_attention_heads, config.word_embed_proj_dim = 2, 16
    model = AutoModelForCausalLM.from_config(config)
    give_positions(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
