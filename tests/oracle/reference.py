"""What PEFT itself answers: one adapter loaded at a time, one prompt at a time, in float32 on the CPU."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from .models import read_model

Mixture = tuple[tuple[Path, float], ...]
"""Folders of adapters with their weights; empty for the bare base."""

_OF_STATES_ONLY = ("mamba", "mamba2", "falcon_mamba")

CLEAR = 1e-3
"""Smallest margin between the best two logits at which every correct implementation must agree."""


@dataclass(frozen=True)
class Greedy:
    """The greedy continuation of a prompt.

    logprobs: of each token. margins: how far the logit of each token stands above the next best one; where it is
    tiny, another correct implementation may go the other way.
    """

    token_ids: list[int]
    logprobs: list[float]
    margins: list[float]


class PeftOracle:
    """PEFT's answers for one base. Keeps each answer, and the loaded model of each mixture."""

    def __init__(self, model_folder: Path) -> None:
        self._folder = model_folder
        self._models: dict[Mixture, Any] = {}
        self._answers: dict[tuple[Mixture, tuple[int, ...], int], Greedy] = {}

    def greedy(self, prompt: Sequence[int], max_tokens: int, mixture: Mixture = ()) -> Greedy:
        """Generate exactly `max_tokens` tokens: an end of sequence does not end it."""
        key = (mixture, tuple(prompt), max_tokens)
        if key not in self._answers:
            self._answers[key] = _continue(self._model(mixture), list(prompt), max_tokens)
        return self._answers[key]

    def sure(self, prompt: Sequence[int], max_tokens: int, mixture: Mixture = ()) -> list[int]:
        """Return the greedy tokens up to the first one whose margin is below CLEAR, which is left out."""
        answer = self.greedy(prompt, max_tokens, mixture)
        close = next((i for i, margin in enumerate(answer.margins) if margin < CLEAR), max_tokens)
        return answer.token_ids[:close]

    def prompt_logprobs(self, prompt: Sequence[int], mixture: Mixture = ()) -> list[float]:
        """Return the log-probability of each token of the prompt but the first."""
        with torch.inference_mode():
            logits = self._model(mixture)(torch.tensor([list(prompt)])).logits[0, :-1]
        return logits.log_softmax(-1).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()

    def hidden_states(self, prompt: Sequence[int], mixture: Mixture = ()) -> list[torch.Tensor]:
        """Return what each decoder layer but the last gives, and last what the head reads: (tokens, width) each."""
        with torch.inference_mode():
            out = self._model(mixture)(torch.tensor([list(prompt)]), output_hidden_states=True)
        return [states[0, -len(prompt) :] for states in out.hidden_states[1:]]

    def _model(self, mixture: Mixture) -> Any:
        if mixture not in self._models:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._models[mixture] = self._load(mixture)
        return self._models[mixture]

    def _load(self, mixture: Mixture) -> Any:
        base = read_model(self._folder)
        if not mixture:
            return base
        if len(mixture) == 1 and mixture[0][1] == 1.0:
            return PeftModel.from_pretrained(base, mixture[0][0]).eval()
        return self._mixed(base, mixture)

    def _mixed(self, base: Any, mixture: Mixture) -> Any:
        """Add the weighted sum of PEFT's own deltas, summed in float64, to the base's weights.

        A tied head first gets its own copy of the weight: LoRA on the embedding leaves the head alone, and the
        other way round.
        """
        head = base.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        sums: dict[str, torch.Tensor] = {}
        for folder, weight in mixture:
            for name, delta in self._deltas(folder).items():
                sums[name] = sums.get(name, 0.0) + weight * delta
        with torch.no_grad():
            for name, delta in sums.items():
                target = base.get_submodule(name).weight
                target.copy_(target.double() + delta)
        return base

    def _deltas(self, folder: Path) -> dict[str, torch.Tensor]:
        layers = self._model(((folder, 1.0),)).base_model.model.named_modules()
        return {name: m.get_delta_weight("default").double() for name, m in layers if isinstance(m, LoraLayer)}


@torch.inference_mode()
def _continue(model: Any, prompt: list[int], max_tokens: int) -> Greedy:
    answer, cache, ids = Greedy([], [], []), None, torch.tensor([prompt])
    states_only = model.config.model_type in _OF_STATES_ONLY
    argument = "cache_params" if states_only else "past_key_values"
    for i in range(max_tokens):
        # Without attention, some would multiply the one token by all entries of the mask.
        mask = None if states_only else torch.ones(1, len(prompt) + i, dtype=torch.int64)
        out = model(input_ids=ids, attention_mask=mask, **{argument: cache}, use_cache=True)
        logits, cache = out.logits[0, -1], out.get(argument)
        best, token_ids = logits.topk(2)
        answer.token_ids.append(int(token_ids[0]))
        answer.margins.append(float(best[0] - best[1]))
        answer.logprobs.append(float(logits.log_softmax(-1)[token_ids[0]]))
        ids = token_ids[None, :1] if cache is not None else torch.cat([ids, token_ids[None, :1]], 1)
    return answer
