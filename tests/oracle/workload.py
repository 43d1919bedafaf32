"""A random mix of requests with PEFT's answers: many adapters, mixtures and the base, arriving over time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .models import EOS, VOCAB_SIZE
from .reference import Mixture, PeftOracle

_MOST_TOKENS = 24


@dataclass(frozen=True)
class Request:
    """One request and its right answer.

    arrival: the number of the step before which it is added.
    token_ids, logprobs: PEFT's, up to and including an end of sequence unless `ignore_eos`.
    """

    request_id: str
    prompt: list[int]
    mixture: Mixture
    arrival: int
    max_tokens: int
    ignore_eos: bool
    token_ids: list[int]
    logprobs: list[float]

    @property
    def finish_reason(self) -> str:
        return "stop" if self.token_ids[-1] == EOS and not self.ignore_eos else "length"


def random_workload(
    oracle: PeftOracle, adapters: Sequence[Path], seed: int = 0, size: int = 48, longest: int = 120, last: int = 30
) -> list[Request]:
    """Draw `size` requests of 1 to `longest` tokens for 1 to 24 more, sorted by arrival in the first `last` steps.

    Half of the prompts start with one of three common prefixes, most of them with one and the same adapter, so that
    pages can be shared, and the rest with any, whose pages must not be.
    """
    chance = random.Random(seed)
    prefixes = [_tokens(chance, chance.randint(longest // 4, longest * 2 // 3)) for _ in range(3)]
    mixtures = _mixtures(chance, adapters)
    requests = []
    for i in range(size):
        mixture, prefix = chance.choice(mixtures), []
        if chance.random() < 0.5:
            common = chance.randrange(len(prefixes))
            prefix = prefixes[common]
            mixture = mixture if chance.random() < 0.3 else mixtures[common * 4]
        prompt = prefix + _tokens(chance, chance.randint(1, longest - len(prefix)))
        requests.append(_request(oracle, chance, f"request-{i}", prompt, mixture, last))
    return sorted(requests, key=lambda request: request.arrival)


def _request(
    oracle: PeftOracle, chance: random.Random, request_id: str, prompt: list[int], mixture: Mixture, last: int
) -> Request:
    asked = chance.randint(1, _MOST_TOKENS)  # before PEFT answers, which takes as long as there are tokens
    while not (sure := oracle.sure(prompt, asked, mixture)):
        prompt = prompt[:-1] + _tokens(chance, 1)
    ignore_eos = chance.random() < 0.5
    token_ids = _until_eos(sure, ignore_eos)
    logprobs = oracle.greedy(prompt, asked, mixture).logprobs[: len(token_ids)]
    return Request(request_id, prompt, mixture, chance.randrange(last), len(sure), ignore_eos, token_ids, logprobs)


def _mixtures(chance: random.Random, adapters: Sequence[Path]) -> list[Mixture]:
    """Return each adapter alone, the base, and four mixtures of two or three adapters."""
    alone: list[Mixture] = [((adapter, 1.0),) for adapter in adapters]
    together: list[Mixture] = [
        tuple((adapter, round(chance.uniform(-0.2, 0.8), 2)) for adapter in chance.sample(list(adapters), count))
        for count in (2, 2, 3, 3)
    ]
    return [*alone, (), *together]


def _tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(5, VOCAB_SIZE) for _ in range(count)]


def _until_eos(token_ids: list[int], ignore_eos: bool) -> list[int]:
    if ignore_eos or EOS not in token_ids:
        return token_ids
    return token_ids[: token_ids.index(EOS) + 1]
