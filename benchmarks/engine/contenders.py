"""The contenders of `engine_vs_peft.py`: our engine, transformers, and transformers with PEFT's mixed batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

from ..models.smollm import Work

Run = Callable[[list[list[int]]], int]  # takes prompts; returns the number of tokens that it made


def engine(base: Path, store: Path, digests: Sequence[str], **config: Any) -> Engine:
    """Make an engine with these adapters compiled.

    Its first run on them, which is not counted, loads them to the device.

    config: further fields of the engine's configuration.
    """
    made = Engine(EngineConfig(model=str(base), store=store, kv_cache_tokens=16384, **config))
    for digest in digests:
        made.inspect_adapter(digest, store / digest)
    return made


def on_engine(made: Engine, work: Work, digests: Sequence[str]) -> Run:
    """Return a run in which request i uses adapter i modulo their number, or the base without digests.

    It raises RuntimeError.
    """

    def run(prompts: list[list[int]]) -> int:
        for index, prompt in enumerate(prompts):
            parts = [WeightedAdapter(digests[index % len(digests)])] if digests else []
            sampling = SamplingParams(max_tokens=work.output_tokens, temperature=0.0, ignore_eos=True)
            request = AddRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, adapters=parts)
            made.add_request(request)
        num_tokens = 0
        while made.has_work():
            for output in made.step():
                if output.error:
                    raise RuntimeError(output.error)
                num_tokens += len(output.token_ids)
        return num_tokens

    return run


def on_transformers(base: Path, work: Work, device: str, dtype: str) -> Run:
    model = LlamaForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(device)
    return lambda prompts: _generate(model, work, prompts)


def on_peft(base: Path, store: Path, work: Work, digests: Sequence[str], device: str, dtype: str) -> Run:
    first, *others = digests
    model = LlamaForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(device)
    mixed = PeftModel.from_pretrained(model, store / first, adapter_name=first)
    for digest in others:
        mixed.load_adapter(store / digest, adapter_name=digest)
    mixed.to(device=device, dtype=getattr(torch, dtype)).eval()
    names = [digests[index % len(digests)] for index in range(work.num_requests)]
    return lambda prompts: _generate(mixed, work, prompts, adapter_names=names)


@torch.inference_mode()
def _generate(model: Any, work: Work, prompts: list[list[int]], **options: Any) -> int:
    ids = torch.tensor(prompts, device=model.device)
    count = work.output_tokens
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        **options,
    )
    return int(output[:, ids.shape[1] :].numel())
