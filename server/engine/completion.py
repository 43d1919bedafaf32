"""From a step's logits to what each sequence says: samples, appends, and ends what has ended."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..wire.messages import FinishReason, SequenceOutput, TokenLogprobs
from . import staging
from .model.inputs import Feed
from .model.runner import StepLogits
from .sampling import (
    Append,
    PendingLogprobs,
    PendingTokens,
    Sampled,
    Sampler,
    SampleRow,
    SamplingMetadata,
    start_prompt_logprobs,
)
from .scheduling.batch import Batch, Lineup, Span
from .scheduling.sequence import Sequence as EngineSequence


class _Scoring(NamedTuple):
    """Logprobs of a prompt's tokens that the device is computing."""

    sequence: EngineSequence
    logprobs: PendingLogprobs


class Finished(NamedTuple):
    """outputs: one for every sequence that has something new. ended: the sequences of which that was the last."""

    outputs: list[SequenceOutput]
    ended: list[EngineSequence]


class Step:
    """A step's way from its batch to what it says: `tell`, `launched`, `tokens_known`, `finish`, in this order."""

    def __init__(self, sampler: Sampler, batch: Batch) -> None:
        self.batch = batch
        self._sampler = sampler
        for sequence in batch.started:
            sampler.seat(sequence.seat, _sample_row(sequence))
        self._scores = batch.scores_prompts
        self._sampled, self._ends = _sampled(batch)
        self._parameters: SamplingMetadata | None = None  # set by `tell`
        self._logits: StepLogits | None = None  # set by `launched`, for what waits for tokens
        self._sampling: PendingTokens | None = None  # set when the device begins to choose
        self._scorings: list[_Scoring] = []

    @property
    def feed(self) -> Feed:
        """The step's tokens on the device, for the step that comes next."""
        assert self._sampling is not None
        return Feed(self._sampling.token_ids, self._sampled.places)

    def tell(self, append: Append) -> None:
        """Put how tokens are chosen, as far as it is known before the launch, behind what goes over with the step."""
        self._parameters = self._sampler.prepare(self._sampled.seats, self._ends, append)

    def launched(self, logits: StepLogits) -> None:
        """The device has the forward pass. It chooses the tokens right behind it, unless that needs those before."""
        assert self._parameters is not None
        self._logits = logits
        if not self._scores and not self._parameters.needs_tokens:
            self._sample(logits)

    def tokens_known(self) -> None:
        """The tokens and logprobs of all steps before have been recorded: what needed them can be chosen."""
        assert self._logits is not None
        if self._scores:
            spans = zip(self.batch.spans, self._logits.offsets, strict=False)
            found = [_start_scoring(span, self._logits, row) for span, row in spans if not span.sequence.is_over]
            self._scorings = [scoring for scoring in found if scoring is not None]
        if self._sampling is None:
            self._sample(self._logits)
        self._logits = None

    def _sample(self, logits: StepLogits) -> None:
        assert self._parameters is not None
        self._sampling = self._sampler.start(_chosen_rows(self.batch, logits), self._parameters)

    def finish(self) -> Finished:
        """Wait for the device, and record what it has found. Sequences that are over by now say nothing."""
        assert self._sampling is not None
        for sequence, logprobs in self._scorings:
            sequence.prompt_logprobs += logprobs.result()
        finished = Finished([], [])
        _record(self._sampled.sequences, self._sampling.result(), finished)
        for span in self.batch.prefills:
            if _is_only_scored(span) and not span.sequence.is_over:
                _say_scores(span.sequence, finished)
        return finished


def _sampled(batch: Batch) -> tuple[Lineup, NDArray[np.int64]]:
    """The sequences that get a token, and where they end before it."""
    if batch.only_decodes:
        return batch.lineup, batch.ends
    places = [place for place, span in enumerate(batch.spans) if span.samples]
    return Lineup(batch.spans[place].sequence for place in places), batch.ends[places]


def _chosen_rows(batch: Batch, logits: StepLogits) -> torch.Tensor:
    """The rows of the logits that are sampled: all, or the last one of each span that is."""
    if not batch.scores_prompts:
        return logits.logits
    ends = zip(batch.spans, logits.offsets[1:], strict=True)
    rows = np.array([end - 1 for span, end in ends if span.samples], np.int64)
    [[there]] = staging.to_device([[rows]], logits.logits.device)
    return logits.logits.index_select(0, there)


def _start_scoring(span: Span, logits: StepLogits, row: int) -> _Scoring | None:
    """Of the prompt's tokens that follow the span's tokens. After a preemption, only of those missing.

    row: the span's first one in the logits.
    """
    sequence = span.sequence
    if span.num_logit_rows == int(span.samples):
        return None
    first = max(sequence.num_virtual + len(sequence.prompt_logprobs), span.start + 1)
    last = min(span.end, sequence.num_prompt - 1)
    if first > last:
        return None
    offset = row - span.start - 1
    scored = logits.logits[offset + first : offset + last + 1]
    top = sequence.sampling.prompt_logprobs or 0
    return _Scoring(sequence, start_prompt_logprobs(scored, sequence.tokens[first : last + 1], top))


def _record(sequences: Iterable[EngineSequence], sampled: Sampled, finished: Finished) -> None:
    """Give each sequence its token. What most have to say in most steps is that token and nothing else."""
    outputs, reports = finished.outputs, sampled.logprobs
    for place, (sequence, token) in enumerate(zip(sequences, sampled.token_ids, strict=True)):
        if sequence.is_over:
            continue
        tokens, output = sequence.tokens, sequence.output
        is_plain = len(tokens) < sequence.limit and token not in sequence.end_token_ids and len(output) > 0
        tokens[-1] = token
        output.append(token)
        if is_plain and place not in reports:
            outputs.append(SequenceOutput(request_id=sequence.request_id, token_ids=[token]))
        else:
            _say_all(sequence, token, reports.get(place), finished)


def _say_all(sequence: EngineSequence, token: int, logprobs: TokenLogprobs | None, finished: Finished) -> None:
    """What may be new of a sequence beside its token."""
    first = len(sequence.output) == 1
    reason, stop = _finish(sequence, token)
    finished.outputs.append(
        SequenceOutput(
            request_id=sequence.request_id,
            token_ids=[token],
            logprobs=None if logprobs is None else [logprobs],
            prompt_logprobs=_prompt_logprobs(sequence) if first else None,
            finish_reason=reason,
            stop_token_id=stop,
            cached_tokens=sequence.num_cached if first else None,
            queue_seconds=sequence.queue_seconds if first else None,
        )
    )
    if reason is not None:
        finished.ended.append(sequence)


def _finish(sequence: EngineSequence, token: int) -> tuple[FinishReason | None, int | None]:
    if token in sequence.end_token_ids and len(sequence.output) > sequence.sampling.min_tokens:
        return "stop", token
    return ("length", None) if sequence.is_full else (None, None)


def _sample_row(sequence: EngineSequence) -> SampleRow:
    return SampleRow(
        sequence.sampling,
        sequence.prompt,
        sequence.output,
        sequence.seed,
        banned_token_ids=tuple(sequence.end_token_ids),
        banned_before=sequence.sampling.min_tokens,
        num_before=sequence.num_prompt,
    )


def _is_only_scored(span: Span) -> bool:
    """A request for no tokens whose prompt has run."""
    return span.sequence.sampling.max_tokens == 0 and span.end == span.sequence.num_prompt


def _say_scores(sequence: EngineSequence, finished: Finished) -> None:
    finished.ended.append(sequence)
    finished.outputs.append(
        SequenceOutput(
            request_id=sequence.request_id,
            token_ids=[],
            prompt_logprobs=_prompt_logprobs(sequence),
            finish_reason="length",
            cached_tokens=sequence.num_cached,
            queue_seconds=sequence.queue_seconds,
        )
    )


def _prompt_logprobs(sequence: EngineSequence) -> list[TokenLogprobs | None] | None:
    return sequence.prompt_logprobs if sequence.wants_prompt_logprobs else None
