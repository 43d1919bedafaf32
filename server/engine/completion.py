"""From a step's logits to what each sequence says: samples, appends, and ends what has ended."""

from collections.abc import Sequence
from typing import NamedTuple

from ..wire.messages import FinishReason, SequenceOutput, TokenLogprobs
from .model.inputs import Feed
from .model.runner import StepLogits
from .sampling import PendingLogprobs, SampledToken, Sampler, SampleRow, Sampling, start_prompt_logprobs
from .scheduling.batch import Batch, Span
from .scheduling.sequence import Sequence as EngineSequence


class _Scoring(NamedTuple):
    """Logprobs of a prompt's tokens that the device is computing."""

    sequence: EngineSequence
    logprobs: PendingLogprobs


class StartedStep:
    """A step whose tokens and logprobs the device is computing. `start_step` makes it."""

    def __init__(
        self, sampled: Sequence[EngineSequence], sampling: Sampling, scorings: Sequence[_Scoring], batch: Batch
    ) -> None:
        """sampled: the sequences that get a token, one a row of `sampling`."""
        self.batch = batch
        self.feed = Feed(sampling.token_ids, {sequence: row for row, sequence in enumerate(sampled)})
        self._sampled = sampled
        self._sampling = sampling
        self._scorings = scorings

    def finish(self) -> list[SequenceOutput]:
        """Wait for the device, and record what it has found; an output for every sequence that has something new.

        Sequences that are over by now say nothing.
        """
        for sequence, logprobs in self._scorings:
            sequence.prompt_logprobs += logprobs.result()
        outputs = [
            _advance(sequence, token)
            for sequence, token in zip(self._sampled, self._sampling.result(), strict=True)
            if not sequence.is_over
        ]
        scored = [span.sequence for span in self.batch.spans if _is_only_scored(span)]
        return outputs + [_scored(sequence) for sequence in scored if not sequence.is_over]


def start_step(sampler: Sampler, batch: Batch, logits: StepLogits) -> StartedStep:
    """Let the device score and sample. All tokens of the steps before are known; what is over by now is left out."""
    there = [i for i, span in enumerate(batch.spans) if not span.sequence.is_over]
    scorings = [
        scoring for i in there if (scoring := _start_scoring(batch.spans[i], logits, logits.offsets[i])) is not None
    ]
    sampling = [i for i in there if batch.spans[i].samples]
    sequences = [batch.spans[i].sequence for i in sampling]
    last = [logits.offsets[i + 1] - 1 for i in sampling]
    chosen = logits.logits if len(last) == logits.offsets[-1] else logits.logits[last]
    return StartedStep(sequences, sampler.start(chosen, [_sample_row(s) for s in sequences]), scorings, batch)


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


def _advance(sequence: EngineSequence, token: SampledToken) -> SequenceOutput:
    first = not sequence.output
    sequence.append(token.token_id)
    reason, stop = _finish(sequence, token.token_id)
    return SequenceOutput(
        request_id=sequence.request_id,
        token_ids=[token.token_id],
        logprobs=None if token.logprobs is None else [token.logprobs],
        prompt_logprobs=_prompt_logprobs(sequence) if first else None,
        finish_reason=reason,
        stop_token_id=stop,
        cached_tokens=sequence.num_cached if first else None,
        queue_seconds=sequence.queue_seconds if first else None,
    )


def _finish(sequence: EngineSequence, token: int) -> tuple[FinishReason | None, int | None]:
    if token in sequence.end_token_ids and len(sequence.output) > sequence.sampling.min_tokens:
        return "stop", token
    return ("length", None) if sequence.is_full else (None, None)


def _sample_row(sequence: EngineSequence) -> SampleRow:
    early = len(sequence.output) < sequence.sampling.min_tokens
    banned = tuple(sequence.end_token_ids) if early else ()
    return SampleRow(sequence.sampling, sequence.prompt, sequence.output, sequence.seed, banned)


def _is_only_scored(span: Span) -> bool:
    """A request for no tokens whose prompt has run."""
    return span.sequence.sampling.max_tokens == 0 and span.end == span.sequence.num_prompt


def _scored(sequence: EngineSequence) -> SequenceOutput:
    return SequenceOutput(
        request_id=sequence.request_id,
        token_ids=[],
        prompt_logprobs=_prompt_logprobs(sequence),
        finish_reason="length",
        cached_tokens=sequence.num_cached,
        queue_seconds=sequence.queue_seconds,
    )


def _prompt_logprobs(sequence: EngineSequence) -> list[TokenLogprobs | None] | None:
    return sequence.prompt_logprobs if sequence.wants_prompt_logprobs else None
