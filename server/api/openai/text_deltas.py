"""One sequence on its way from the engine's tokens to what a client sees: text, logprobs and the reason for its end.

Knows no HTTP and no engine; it is fed.
"""

from collections import deque
from collections.abc import Container

import msgspec

from ...wire.messages import FinishReason, SequenceOutput, TokenLogprobs
from ..text.detokenizer import Detokenizer
from .stop_strings import StopStrings


class ShownToken(msgspec.Struct, frozen=True):
    """A token whose text has begun to show. offset: where its text begins in the generated text, in characters."""

    token_id: int
    offset: int
    logprobs: TokenLogprobs | None


class Delta(msgspec.Struct):
    """The text and tokens that one step adds to what a client sees of a sequence. Text is never taken back.

    token_ids: as the engine made them, whether or not their text is shown yet.
    shown: the tokens whose text has begun to show, where the engine reports logprobs; they cover all of the text.
    finish_reason: with the last delta. stop_reason: the request's stop string or token id that ended it.
    """

    text: str = ""
    token_ids: list[int] = []
    shown: list[ShownToken] = []
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int | None = None

    def extend(self, later: "Delta") -> None:
        """Add what came after; the whole of a sequence is the sum of its deltas."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.shown += later.shown
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason
        self.prompt_logprobs = self.prompt_logprobs or later.prompt_logprobs
        if self.cached_tokens is None:
            self.cached_tokens = later.cached_tokens

    @property
    def cumulative_logprob(self) -> float:
        return sum(token.logprobs.chosen.logprob for token in self.shown if token.logprobs is not None)


class SequenceDecoder:
    """Turn one sequence's outputs into deltas.

    show_stop_token: whether the token that ended the sequence is part of the text.

    min_tokens: stop strings that begin before so many tokens do not count. ends: tokens whose end of a sequence is a
    plain one, without a stop reason.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopStrings,
        *,
        min_tokens: int = 0,
        show_stop_token: bool = False,
        ends: Container[int] = (),
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._min_tokens = min_tokens
        self._show_stop_token = show_stop_token
        self._ends = ends
        self._num_tokens = 0
        self._decoded = 0  # characters that the detokenizer has given
        self._emitted = 0  # characters that have been shown
        self._waiting: deque[ShownToken] = deque()  # tokens whose text is still held back

    def push(self, output: SequenceOutput) -> Delta:
        """Return the delta of an output.

        Nothing may follow a delta with a finish reason, which the engine may not know.
        """
        if output.finish_reason is None and output.logprobs is None and not self._stops.any and not self._waiting:
            return self._push_text(output)
        delta = Delta(prompt_logprobs=output.prompt_logprobs, cached_tokens=output.cached_tokens)
        for position, token_id in enumerate(output.token_ids):
            hidden = (
                output.stop_token_id is not None and position == len(output.token_ids) - 1 and not self._show_stop_token
            )
            delta.text += self._take(token_id, output.logprobs[position] if output.logprobs else None, hidden)
            delta.token_ids.append(token_id)
            if self._stops.matched is not None:
                break
        if output.finish_reason is not None and self._stops.matched is None:
            delta.text += self._check(self._detokenizer.flush())
        self._end(delta, output)
        self._emitted += len(delta.text)
        self._release(delta)
        return delta

    def _push_text(self, output: SequenceOutput) -> Delta:
        """Return the delta of an output of which only the text matters."""
        text = "".join(map(self._detokenizer.push, output.token_ids))
        self._num_tokens += len(output.token_ids)
        self._decoded += len(text)
        self._emitted += len(text)
        delta = Delta(text, output.token_ids)
        if output.cached_tokens is not None:
            delta.cached_tokens, delta.prompt_logprobs = output.cached_tokens, output.prompt_logprobs
        return delta

    def _take(self, token_id: int, logprobs: TokenLogprobs | None, hidden: bool) -> str:
        self._num_tokens += 1
        if logprobs is not None:
            self._waiting.append(ShownToken(token_id, self._decoded, logprobs))
        return "" if hidden else self._check(self._detokenizer.push(token_id))

    def _check(self, text: str) -> str:
        self._decoded += len(text)
        return text if self._num_tokens < self._min_tokens else self._stops.push(text)

    def _end(self, delta: Delta, output: SequenceOutput) -> None:
        if self._stops.matched is not None:
            delta.finish_reason, delta.stop_reason = "stop", self._stops.matched
        elif output.finish_reason is not None:
            delta.text += self._stops.flush()
            delta.finish_reason = output.finish_reason
            delta.stop_reason = None if output.stop_token_id in self._ends else output.stop_token_id

    def _release(self, delta: Delta) -> None:
        """Move the tokens whose text shows to `delta.shown`; at the end all but those behind a stop string."""
        everything = delta.finish_reason is not None and self._stops.matched is None
        while self._waiting and (everything or self._waiting[0].offset < self._emitted):
            delta.shown.append(self._waiting.popleft())
