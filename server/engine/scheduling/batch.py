"""What one step runs: spans of sequences, in an order that keeps each adapter's tokens together."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .sequence import Sequence

Ints = NDArray[np.int64]


class Span(NamedTuple):
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


class Lineup:
    """Sequences of a step, in the order of their rows. Steps of which that is the same have the same object.

    seats: (sequences,) int64, their seats.
    """

    def __init__(self, sequences: Iterable[Sequence]) -> None:
        self.sequences = tuple(sequences)
        self.seats: Ints = np.array([sequence.seat for sequence in self.sequences], np.int64)

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def places(self) -> dict[Sequence, int]:
        """Where each sequence is in it."""
        return {sequence: place for place, sequence in enumerate(self.sequences)}


class Batch:
    """lineup: the sequence of each span. ends: (spans,) int64, where each span ends.

    prefills: the spans that are not of sequences which decode. started: sequences that have taken a seat for this step.
    """

    def __init__(self, spans: Seq[Span] = (), prefills: Seq[Span] | None = None, started: Seq[Sequence] = ()) -> None:
        """prefills: those of `spans` that are, None for all."""
        self.lineup = Lineup(span.sequence for span in spans)
        self.ends: Ints = np.array([span.end for span in spans], np.int64)
        self.prefills = spans if prefills is None else prefills
        self.started = started
        self.spans = list(spans)

    @staticmethod
    def of_decodes(lineup: Lineup, ends: Ints) -> "Batch":
        """Every sequence runs one token and samples the next: nothing here is done for each of them."""
        batch = Batch.__new__(Batch)
        batch.lineup, batch.ends = lineup, ends
        batch.prefills = batch.started = ()
        return batch

    @staticmethod
    def by_adapter(spans: Iterable[Span], prefills: Seq[Span], started: Seq[Sequence]) -> "Batch":
        """Spans of equal adapters next to each other, so that each adapter's tokens are one segment."""
        return Batch(sorted(spans, key=lambda span: span.sequence.slots), prefills, started)

    @cached_property
    def spans(self) -> list[Span]:
        """Made when they are asked for: a step of decodes may do without."""
        return [Span(s, end - 1, 1, True) for s, end in zip(self.lineup.sequences, self.ends.tolist(), strict=True)]

    def __bool__(self) -> bool:
        return len(self.lineup) > 0

    @property
    def only_decodes(self) -> bool:
        """Whether every span is one token of a sequence that decodes."""
        return not self.prefills

    @property
    def scores_prompts(self) -> bool:
        """Whether more rows reach the head than are sampled."""
        return any(span.num_logit_rows > span.samples for span in self.prefills)

    @property
    def num_tokens(self) -> int:
        return len(self.lineup) if self.only_decodes else sum(span.num_tokens for span in self.spans)
