"""From a step's logits to what each sequence says: samples, appends, and ends what has ended."""

from ..wire.messages import FinishReason, SequenceOutput, TokenLogprobs
from .model.runner import StepLogits
from .sampling import SampledToken, Sampler, SampleRow, start_prompt_logprobs
from .scheduling.batch import Batch, Span
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import Sequence


class OutputMaker:
    def __init__(self, sampler: Sampler, scheduler: Scheduler, max_model_len: int) -> None:
        self._sampler = sampler
        self._scheduler = scheduler
        self._max_model_len = max_model_len

    def update(self, batch: Batch, logits: StepLogits) -> list[SequenceOutput]:
        """Record that the batch has run; returns an output for every sequence that has something new."""
        for i, span in enumerate(batch.spans):
            self._scheduler.complete(span)
            if span.num_logit_rows > int(span.samples):
                self._score_prompt(span, logits, i)
        sampling = [i for i, span in enumerate(batch.spans) if span.samples]
        rows = [_sample_row(batch.spans[i].sequence) for i in sampling]
        last = [logits.offsets[i + 1] - 1 for i in sampling]
        chosen = logits.logits if len(last) == logits.offsets[-1] else logits.logits[last]
        outputs = [
            self._advance(batch.spans[i].sequence, token)
            for i, token in zip(sampling, self._sampler.start(chosen, rows).result(), strict=True)
        ]
        return outputs + [_scored(span.sequence) for span in batch.spans if _is_only_scored(span)]

    def _score_prompt(self, span: Span, logits: StepLogits, index: int) -> None:
        """Logprobs of the prompt's tokens that follow the span's tokens. After a preemption, only of those missing."""
        sequence = span.sequence
        first = max(sequence.num_virtual + len(sequence.prompt_logprobs), span.start + 1)
        last = min(span.end, sequence.num_prompt - 1)
        if first <= last:
            offset = logits.offsets[index] - span.start - 1
            scored = logits.logits[offset + first : offset + last + 1]
            top = sequence.sampling.prompt_logprobs or 0
            sequence.prompt_logprobs += start_prompt_logprobs(scored, sequence.tokens[first : last + 1], top).result()

    def _advance(self, sequence: Sequence, token: SampledToken) -> SequenceOutput:
        first = not sequence.output
        sequence.append(token.token_id)
        reason, stop = self._finish(sequence, token.token_id)
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

    def _finish(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        if token in sequence.end_token_ids and len(sequence.output) > sequence.sampling.min_tokens:
            return "stop", token
        at_limit = len(sequence.output) >= sequence.sampling.max_tokens
        if at_limit or len(sequence.tokens) >= self._max_model_len:
            return "length", None
        return None, None


def _sample_row(sequence: Sequence) -> SampleRow:
    early = len(sequence.output) < sequence.sampling.min_tokens
    banned = tuple(sequence.end_token_ids) if early else ()
    return SampleRow(sequence.sampling, sequence.prompt, sequence.output, sequence.seed, banned)


def _is_only_scored(span: Span) -> bool:
    """A request for no tokens whose prompt has run."""
    return span.sequence.sampling.max_tokens == 0 and span.end == span.sequence.num_prompt


def _scored(sequence: Sequence) -> SequenceOutput:
    return SequenceOutput(
        request_id=sequence.request_id,
        token_ids=[],
        prompt_logprobs=_prompt_logprobs(sequence),
        finish_reason="length",
        cached_tokens=sequence.num_cached,
        queue_seconds=sequence.queue_seconds,
    )


def _prompt_logprobs(sequence: Sequence) -> list[TokenLogprobs | None] | None:
    return sequence.prompt_logprobs if sequence.wants_prompt_logprobs else None
