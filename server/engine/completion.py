"""From a step's logits to the outputs of its sequences: samples, appends tokens, and ends sequences."""

import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..wire.faults import InvalidLogits
from ..wire.messages import FinishReason, SequenceOutput, TokenLogprobs
from . import staging
from .model.inputs import Feed
from .model.pooling import ends_pooling
from .model.runner import StepLogits
from .requests import ended_by, failed
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
from .scheduling.batch import Batch, Chunk, Lineup
from .scheduling.sequence import Sequence as EngineSequence

logger = logging.getLogger(__name__)

UNSOUND = "the model gave numbers that are not finite, by which no token can be chosen; the server's log says more"


class _Scoring(NamedTuple):
    """Logprobs of a prompt's tokens that the device is computing."""

    sequence: EngineSequence
    logprobs: PendingLogprobs


class _Pooled(NamedTuple):
    """Pooled hidden states that are on their way to the host, in the order of their sequences."""

    sequences: list[EngineSequence]
    vectors: staging.Returning


class Finished(NamedTuple):
    """The results of one step.

    outputs: one for every sequence that has something new. ended: the sequences of which that was the last; of them,
    unsound: those for which the model gave no numbers.
    """

    outputs: list[SequenceOutput]
    ended: list[EngineSequence]
    unsound: list[EngineSequence]


class PendingStep:
    """A step that is under way, from its batch to its outputs.

    Call `tell`, `launched`, `tokens_known` and `finish`, in this order.
    """

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
        self._pooled: _Pooled | None = None  # set by `launched`, where prompts that are pooled end

    @property
    def feed(self) -> Feed:
        """Return the step's tokens on the device, for the step that comes next."""
        assert self._sampling is not None
        return Feed(self._sampling.token_ids, self._sampled.places)

    def tell(self, append: Append) -> None:
        """Append the sampling parameters that are known before the launch to what is copied with the step."""
        self._parameters = self._sampler.prepare(self._sampled.seats, self._ends, append)

    def launched(self, logits: StepLogits) -> None:
        """Note that the forward pass is enqueued, and enqueue sampling unless it needs tokens of earlier steps."""
        assert self._parameters is not None
        self._logits = logits
        self._pooled = _start_pooled(self.batch)
        if not self._scores and not self._parameters.needs_tokens:
            self._sample(logits)

    def tokens_known(self) -> None:
        """Note that all earlier steps are recorded, and enqueue the sampling and scoring that waited for them."""
        assert self._logits is not None
        if self._scores:
            chunks = zip(self.batch.chunks, self._logits.offsets, strict=False)
            found = [_start_scoring(chunk, self._logits, row) for chunk, row in chunks if not chunk.sequence.is_over]
            self._scorings = [scoring for scoring in found if scoring is not None]
        if self._sampling is None:
            self._sample(self._logits)
        self._logits = None

    def _sample(self, logits: StepLogits) -> None:
        assert self._parameters is not None
        self._sampling = self._sampler.start(_chosen_rows(self.batch, logits), self._parameters)

    def finish(self) -> Finished:
        """Wait for the device and record its results. Sequences that are over by now get no output."""
        assert self._sampling is not None
        finished = Finished([], [], [])
        for scoring in self._scorings:
            _take_scores(scoring, finished)
        if self._pooled is not None:
            _take_pooled(self._pooled, finished)
        _record(self._sampled.sequences, self._sampling.result(), finished)
        for chunk in self.batch.prefills:
            if _is_only_scored(chunk) and not chunk.sequence.is_over:
                _report_scores(chunk.sequence, finished)
        return finished


def _sampled(batch: Batch) -> tuple[Lineup, NDArray[np.int64]]:
    """Return the sequences that get a token, and (sequences,) int64, their numbers of tokens before it."""
    if batch.only_decodes:
        return batch.lineup, batch.ends
    places = [place for place, chunk in enumerate(batch.chunks) if chunk.samples]
    return Lineup(batch.chunks[place].sequence for place in places), batch.ends[places]


def _chosen_rows(batch: Batch, logits: StepLogits) -> torch.Tensor:
    """Return the rows of the logits that are sampled: all, or the last one of each chunk that is sampled."""
    if not batch.scores_prompts:
        return logits.logits
    ends = zip(batch.chunks, logits.offsets[1:], strict=True)
    rows = np.array([end - 1 for chunk, end in ends if chunk.samples], np.int64)
    [[there]] = staging.to_device([[rows]], logits.logits.device)
    return logits.logits.index_select(0, there)


def _start_scoring(chunk: Chunk, logits: StepLogits, row: int) -> _Scoring | None:
    """Enqueue logprobs of the prompt's tokens that follow the chunk's; after a preemption, of the missing ones only.

    row: the chunk's first row in the logits. Returns None where none is wanted.
    """
    sequence = chunk.sequence
    if chunk.num_logit_rows == int(chunk.samples):
        return None
    first = max(sequence.num_virtual + len(sequence.prompt_logprobs), chunk.start + 1)
    last = min(chunk.end, sequence.num_prompt - 1)
    if first > last:
        return None
    offset = row - chunk.start - 1
    scored = logits.logits[offset + first : offset + last + 1]
    top = sequence.sampling.prompt_logprobs or 0
    return _Scoring(sequence, start_prompt_logprobs(scored, sequence.tokens[first : last + 1], top))


def _take_scores(scoring: _Scoring, finished: Finished) -> None:
    """Note the logprobs of a prompt's tokens, or end its sequence where they would be of no numbers."""
    sequence, found = scoring.sequence, scoring.logprobs.result()
    if found is not None:
        sequence.prompt_logprobs += found
    elif not sequence.is_over:
        _fail_unsound(sequence, finished)


def _start_pooled(batch: Batch) -> _Pooled | None:
    """Enqueue the copy to the host of the vectors that the step has completed; None where it has none."""
    sequences = [chunk.sequence for chunk in batch.prefills if ends_pooling(chunk)]
    vectors = [sequence.pooled for sequence in sequences if sequence.pooled is not None]
    return _Pooled(sequences, staging.Returning(vectors)) if sequences else None


def _take_pooled(pooled: _Pooled, finished: Finished) -> None:
    """Give each sequence its vector."""
    for sequence, vector in zip(pooled.sequences, pooled.vectors.result(), strict=True):
        if not sequence.is_over and not bool(vector.isfinite().all()):
            _fail_unsound(sequence, finished)
        sequence.pooled_bytes = vector.numpy().astype("<f4").tobytes()


def _fail_unsound(sequence: EngineSequence, finished: Finished) -> None:
    """End a sequence for which the model gave no numbers."""
    adapters = ", ".join(adapter.key for adapter in sequence.adapters) or "the base"
    logger.error("the logits of a sequence are not finite; it ran on %s", adapters)
    sequence.is_over = True
    finished.outputs.append(ended_by(sequence.request_id, InvalidLogits(UNSOUND)))
    finished.ended.append(sequence)
    finished.unsound.append(sequence)


def _record(sequences: Iterable[EngineSequence], sampled: Sampled, finished: Finished) -> None:
    """Give each sequence its token. The fast path is for those that report nothing else."""
    outputs, reports, unsound = finished.outputs, sampled.logprobs, sampled.unsound
    for place, (sequence, token) in enumerate(zip(sequences, sampled.token_ids, strict=True)):
        if sequence.is_over:
            continue
        if place in unsound:
            _fail_unsound(sequence, finished)
            continue
        tokens, output = sequence.tokens, sequence.output
        goes_on = len(tokens) < sequence.limit and token not in sequence.end_token_ids and sequence.form is None
        is_plain = goes_on and len(output) > 0
        tokens[-1] = token
        output.append(token)
        if is_plain and place not in reports:
            outputs.append(SequenceOutput(request_id=sequence.request_id, token_ids=[token]))
        else:
            _report_all(sequence, token, reports.get(place), finished)


def _report_all(sequence: EngineSequence, token: int, logprobs: TokenLogprobs | None, finished: Finished) -> None:
    """Add a sequence's full output: its token, logprobs, finish reason, and what comes with the first token."""
    first = len(sequence.output) == 1
    reason, stop = _finish(sequence, token)
    if sequence.form is not None and sequence.form.error is not None:
        finished.outputs.append(failed(sequence, sequence.form.error))
        finished.ended.append(sequence)
        return
    finished.outputs.append(
        SequenceOutput(
            request_id=sequence.request_id,
            token_ids=[token],
            logprobs=None if logprobs is None else [logprobs],
            prompt_logprobs=_prompt_logprobs(sequence) if first else None,
            pooled=sequence.pooled_bytes if first else None,
            finish_reason=reason,
            stop_token_id=stop,
            cached_tokens=sequence.num_cached if first else None,
            queue_seconds=sequence.queue_seconds if first else None,
            load_seconds=sequence.load_seconds or None if first else None,
            prefill_seconds=time.monotonic() - sequence.begun if first else None,
        )
    )
    if reason is not None:
        finished.ended.append(sequence)


def _finish(sequence: EngineSequence, token: int) -> tuple[FinishReason | None, int | None]:
    is_early = len(sequence.output) <= sequence.sampling.min_tokens and sequence.form is None
    if token in sequence.end_token_ids and not is_early:  # whatever its grammar allows beside an end has been asked
        return "stop", token
    if sequence.form is not None and sequence.form.take(token):
        return "stop", None
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
        form=sequence.form,
    )


def _is_only_scored(chunk: Chunk) -> bool:
    """Return whether the request asks for no tokens and its prompt has run."""
    return chunk.sequence.sampling.max_tokens == 0 and chunk.end == chunk.sequence.num_prompt


def _report_scores(sequence: EngineSequence, finished: Finished) -> None:
    finished.ended.append(sequence)
    finished.outputs.append(
        SequenceOutput(
            request_id=sequence.request_id,
            token_ids=[],
            prompt_logprobs=_prompt_logprobs(sequence),
            pooled=sequence.pooled_bytes,
            finish_reason="length",
            cached_tokens=sequence.num_cached,
            queue_seconds=sequence.queue_seconds,
            load_seconds=sequence.load_seconds or None,
            prefill_seconds=time.monotonic() - sequence.begun,
        )
    )


def _prompt_logprobs(sequence: EngineSequence) -> list[TokenLogprobs | None] | None:
    return sequence.prompt_logprobs if sequence.wants_prompt_logprobs else None
