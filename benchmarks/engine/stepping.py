"""Drives an engine step by step: sequences begin together, every prompt runs, and then steps are for measuring."""

import time
from collections.abc import Sequence
from random import Random

import torch

from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter


def start(engine: Engine, sequences: int, digests: Sequence[str], context: int, tokens: int, seed: int = 1) -> None:
    """Add requests of `context` prompt and `tokens` output tokens. Sequence i has adapter i modulo their number."""
    random = Random(seed)
    for index in range(sequences):
        prompt = random.choices(range(3, engine.info.vocab_size), k=context)
        adapters = [WeightedAdapter(digests[index % len(digests)])] if digests else []
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        engine.add_request(
            AddRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, adapters=adapters)
        )


def run(engine: Engine, sequences: int, digests: Sequence[str], context: int, tokens: int, seed: int) -> float:
    """Run sequences to their end; return the seconds."""
    start(engine, sequences, digests, context, tokens, seed)
    synchronize()
    begin = time.perf_counter()
    while engine.has_work():
        step(engine)
    synchronize()
    return time.perf_counter() - begin


def step(engine: Engine) -> set[str]:
    """Run one step; return the ids of its requests. Raises RuntimeError if any failed."""
    outputs = engine.step()
    for output in outputs:
        if output.error:
            raise RuntimeError(output.error)
    return {output.request_id for output in outputs}


def settle(engine: Engine, sequences: int) -> None:
    """Run steps until every prompt has been read."""
    started: set[str] = set()
    while len(started) < sequences:
        started |= step(engine)


def steps(engine: Engine, count: int) -> float:
    """Run `count` steps; return the mean seconds of one."""
    synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        step(engine)
    synchronize()
    return (time.perf_counter() - begin) / count


def finish(engine: Engine, sequences: int) -> None:
    """Abort all sequences and run until the engine is idle."""
    for index in range(sequences):
        engine.abort(str(index))
    while engine.has_work():
        engine.step()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
