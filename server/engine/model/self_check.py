"""Checks before any request is taken: the traced prompt in chunks through the paged cache, and the largest step."""

from itertools import pairwise

import torch

from peftserve.kernels.attention.layout import Limits

from ...wire.messages import SamplingParams
from ..scheduling.batch import Batch, Chunk
from ..scheduling.sequence import Sequence
from .errors import UnservableModel
from .loading import Trace
from .runner import ModelRunner


def check_paged_attention(runner: ModelRunner, trace: Trace, page_size: int) -> None:
    """Run the traced prompt in two chunks and a decode. Raises UnservableModel unless they give the trace's logits.

    Uses the cache's first pages, which nobody holds yet.
    """
    prompt = trace.token_ids.tolist()
    sequence = _sequence(prompt, SamplingParams(prompt_logprobs=0), 0, page_size)
    cuts = [0, len(prompt) // 2, len(prompt) - 1, len(prompt)]
    spans = [Chunk(sequence, start, end - start, samples=False) for start, end in pairwise(cuts)]
    logits = [runner.run(Batch([span])).logits for span in spans if span.num_tokens]
    trace.check(torch.cat(logits), "the paged KV cache")


def run_largest_step(runner: ModelRunner, limits: Limits, num_pages: int, page_size: int) -> None:
    """Run a prefill of as many tokens as one step may have and the cache holds.

    Raises UnservableModel if it fails, such as for want of memory: it is better not to start than to stop at the first
    long prompt. What it needs stays at hand for the steps to come.
    """
    num_tokens = min(limits.rows, num_pages * page_size)
    longest = limits.positions // page_size * page_size or limits.positions  # whole pages, if they hold as much
    lengths = [min(longest, num_tokens - begin) for begin in range(0, num_tokens, longest)]
    spans, page = list[Chunk](), 0
    for length in lengths[: min(limits.spans, num_pages)]:
        sequence = _sequence([0] * length, SamplingParams(), page, page_size)
        spans.append(Chunk(sequence, 0, length, samples=True))
        page += len(sequence.pages)
    try:
        runner.run(Batch(spans))
    except RuntimeError as error:
        raise UnservableModel(
            f"a step of {num_tokens} tokens fails ({str(error).splitlines()[0]}); a lower --max-batch-tokens or "
            "--kv-cache-tokens needs less memory"
        ) from error


def _sequence(prompt: list[int], sampling: SamplingParams, first_page: int, page_size: int) -> Sequence:
    """Make a sequence that holds as many pages as it needs, from `first_page` on."""
    sequence = Sequence(
        request_id="self-check",
        prompt=prompt,
        sampling=sampling,
        adapters=(),
        salt="",
        seed=0,
        eos_token_ids=frozenset(),
    )
    sequence.pages = list(range(first_page, first_page - (-len(prompt) // page_size)))
    return sequence
