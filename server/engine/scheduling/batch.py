"""What one step runs: spans of sequences, in an order that keeps each adapter's tokens together."""

from dataclasses import dataclass, field

from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, start + num_tokens) of a sequence. `samples`: its last token's logits give the next token.

    fill: tokens of the adapter's prefix, from the first of these to `start`, whose keys and values are to be copied
        to the sequence's pages first; None if they lie there.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    fill: int | None = None

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def num_logit_rows(self) -> int:
        """Rows that must reach the head: all for prompt logprobs, else the last one if it is sampled."""
        if self.sequence.wants_prompt_logprobs and self.start < self.sequence.num_prompt:
            return self.num_tokens
        return int(self.samples)


@dataclass(frozen=True)
class Batch:
    spans: list[Span] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.spans)

    @property
    def num_tokens(self) -> int:
        return sum(span.num_tokens for span in self.spans)

    @staticmethod
    def by_adapter(spans: list[Span]) -> "Batch":
        """Spans of equal adapters next to each other, so that each adapter's tokens are one segment."""
        return Batch(sorted(spans, key=lambda span: span.sequence.lease.slots if span.sequence.lease else ()))
