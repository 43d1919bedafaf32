"""What transformers, and PEFT on it, answer themselves: one prompt at a time, greedily, in float32 on the CPU."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

CLEAR = 1e-3  # margin between the best two logits, above which every correct implementation gives the same token


@dataclass(frozen=True)
class Answer:
    """A greedy continuation. logprobs: of its tokens. sure: how many of them come before the first that is unclear."""

    token_ids: list[int]
    logprobs: list[float]
    sure: int


def load(folder: Path) -> Any:
    """Load a model with transformers' eager attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        return model.eval().requires_grad_(False)


@torch.inference_mode()
def answer(model: Any, prompt: Sequence[int], max_tokens: int) -> Answer:
    """Generate exactly `max_tokens` tokens with the model's own `generate`: an end of sequence does not end it."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([list(prompt)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logits = torch.cat(out.logits).float()
    best, tokens = logits.topk(2, dim=-1)
    logprobs = logits.log_softmax(-1).gather(1, tokens[:, :1])[:, 0]
    margins = (best[:, 0] - best[:, 1]).tolist()
    sure = next((i for i, margin in enumerate(margins) if not margin >= CLEAR), max_tokens)
    return Answer(tokens[:, 0].tolist(), logprobs.tolist(), sure)


@torch.inference_mode()
def uncached(model: Any, prompt: Sequence[int], answer: Answer) -> list[float]:
    """Return the log-probabilities that one plain pass gives the tokens of an answer."""
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(logits, answer.token_ids, strict=True)]
