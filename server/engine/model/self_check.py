"""Runs the traced prompt once more through the paged cache, in chunks, before any request is taken."""

from itertools import pairwise

import torch

from ...wire.messages import SamplingParams
from ..scheduling.batch import Batch, Span
from ..scheduling.sequence import Sequence
from .loading import Trace
from .runner import ModelRunner


def check_paged_attention(runner: ModelRunner, trace: Trace, page_size: int) -> None:
    """Raises UnservableModel if two chunks and a decode do not give the logits of one plain pass.

    Uses the cache's first pages, which nobody holds yet.
    """
    prompt = trace.token_ids.tolist()
    sequence = Sequence(
        request_id="self-check",
        prompt=prompt,
        sampling=SamplingParams(prompt_logprobs=0),
        adapters=(),
        salt="",
        seed=0,
        eos_token_ids=frozenset(),
    )
    sequence.pages = list(range(-(-len(prompt) // page_size)))
    cuts = [0, len(prompt) // 2, len(prompt) - 1, len(prompt)]
    spans = [Span(sequence, start, end - start, samples=False) for start, end in pairwise(cuts)]
    logits = [runner.run(Batch([span])).logits for span in spans if span.num_tokens]
    trace.check(torch.cat(logits), "the paged KV cache")
