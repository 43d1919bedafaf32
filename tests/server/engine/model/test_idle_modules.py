"""Which modules no text passes, and adapters there: served like those without them."""

from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from peftserve.server.engine.model.idle_modules import IdleTracer
from peftserve.server.offline.llm import LLM
from peftserve.server.wire.messages import SamplingParams


class Experts(nn.Module):
    """Sends all tokens to the first of its experts, and multiplies with a weight of a module that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.router = nn.Linear(4, 3)
        self.image_router = nn.Linear(4, 3)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(4))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = nn.functional.linear(x, self.router.weight).softmax(-1)
        y: torch.Tensor = self.experts[0](x)
        return torch.cat([y * weights[..., :1], self.scales[0][None]])


def test_what_is_called_or_used_is_not_idle_nor_is_what_is_like_it() -> None:
    model = Experts()
    with IdleTracer(model) as tracer:
        model(torch.randn(2, 4))
    assert tracer.idle() == {"image_router"}
    assert tracer.read() == {"router"}
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_cross_attention_without_an_encoder_is_served(tmp_path: Path) -> None:
    """LoRA on all linears, as PEFT makes it: what it has on the cross-attention is named, and does nothing."""
    config = transformers.MarianConfig(
        vocab_size=80, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, pad_token_id=1
    )
    config.decoder_vocab_size, config.max_position_embeddings = 80, 64
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    prompt = [5, 44, 9, 70, 13, 21]
    adapted.generation_config.eos_token_id = adapted.generation_config.forced_eos_token_id = None
    ids = torch.tensor([prompt])
    expected = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    with LLM(tmp_path / "base", device="cpu", dtype="float32", kv_cache_tokens=256) as llm:
        facts = llm.add_adapter("a", tmp_path / "adapter").facts
        sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
        [got] = llm.generate([prompt], adapter="a", sampling=sampling)
    assert got.token_ids == expected[0, len(prompt) :].tolist()
    assert any("encoder_attn" in name for name in facts.unused)
