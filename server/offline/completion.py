"""The sequences of an offline call: from the engine's outputs to text."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..api.openai.text_deltas import Delta, SequenceDecoder
from ..wire.faults import received
from ..wire.messages import AddRequest, FinishReason, SequenceOutput, TokenLogprobs


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt.

    prompt: the text, or None where token ids were given. text: without what stopped it.
    finish_reason: `stop` or `length`. stop_reason: the stop string or token id of the
    request that ended it, if one did.
    adapter: who answered: the base's name, `sql@1`, or `a@1*0.7+b@2*0.3`.
    logprobs, prompt_logprobs: by token, where the sampling parameters ask for them; a prompt's first token has none.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None
    adapter: str
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class Running(Protocol):
    """A request that runs."""

    request: AddRequest

    def push(self, output: SequenceOutput) -> bool:
        """Take in a step's output. Returns whether the sequence is over."""


class RunningPrompt:
    """A prompt that runs for its hidden states. vector: of the whole prompt, when it is over."""

    def __init__(self, request: AddRequest) -> None:
        self.request = request
        self.vector: list[float] = []

    def push(self, output: SequenceOutput) -> bool:
        """Take in the output. Raises AdapterError, EngineFault or ValueError where the engine could not serve it."""
        _check(output)
        assert output.pooled is not None
        self.vector = np.frombuffer(output.pooled, "<f4").tolist()
        return True


class RunningSequence:
    """A request that runs, and its text so far. prompt, adapter: as in `Completion`."""

    def __init__(self, request: AddRequest, prompt: str | None, adapter: str, decoder: SequenceDecoder) -> None:
        self.request = request
        self._prompt = prompt
        self._adapter = adapter
        self._decoder = decoder
        self._whole = Delta()

    def push(self, output: SequenceOutput) -> bool:
        """Take in a step's output. Returns whether the sequence is over; of a stop string the engine does not know.

        Raises AdapterError, EngineFault or ValueError where the engine could not serve it.
        """
        _check(output)
        self._whole.extend(self._decoder.push(output))
        return self._whole.finish_reason is not None

    def completion(self) -> Completion:
        """Return the answer of a sequence that is over."""
        whole, sampling = self._whole, self.request.sampling
        assert whole.finish_reason is not None
        reports = [token.logprobs for token in whole.shown if token.logprobs is not None]
        return Completion(
            prompt=self._prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            text=whole.text,
            token_ids=whole.token_ids,
            finish_reason=whole.finish_reason,
            stop_reason=whole.stop_reason,
            adapter=self._adapter,
            logprobs=None if sampling.logprobs is None else reports,
            prompt_logprobs=whole.prompt_logprobs,
        )


def _check(output: SequenceOutput) -> None:
    """Raise what the engine says of a sequence that it could not serve."""
    if output.error is not None:
        raise received(output.error_kind, output.error) if output.error_kind else ValueError(output.error)
