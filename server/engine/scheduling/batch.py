"""The work of one step: chunks of sequences, in an order that keeps each adapter's tokens together."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .sequence import Sequence

Ints = NDArray[np.int64]


class Save(NamedTuple):
    """A copy of a sequence's state to make behind a chunk. slot: where to. key: of the last page that it covers."""

    slot: int
    key: bytes


class Chunk(NamedTuple):
    """Tokens [start, start + num_tokens) of a sequence, which one step runs.

    samples: whether the logits of the last one give the sequence's next token.
    fill: tokens of the adapter's prefix, from the first of these to `start`, whose keys and values are to be copied
        to the sequence's pages first; None if they lie there.
    restore: the slot of the snapshot that the sequence's state is to be copied from first. save: a copy to make after.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    fill: int | None = None
    restore: int | None = None
    save: Save | None = None

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def num_logit_rows(self) -> int:
        """Return how many rows must reach the head: all for prompt logprobs, else the last one if it is sampled."""
        if self.sequence.wants_prompt_logprobs and self.start < self.sequence.num_prompt:
            return self.num_tokens
        return int(self.samples)


class Lineup:
    """Sequences of a step, in the order of their rows. Steps with the same ones in the same order share an object.

    seats: (sequences,) int64, their seats.
    """

    def __init__(self, sequences: Iterable[Sequence]) -> None:
        self.sequences = tuple(sequences)
        self.seats: Ints = np.array([sequence.seat for sequence in self.sequences], np.int64)

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def places(self) -> dict[Sequence, int]:
        """Return the place of each sequence in the order."""
        return {sequence: place for place, sequence in enumerate(self.sequences)}


class Batch:
    """The work of one step.

    lineup: the sequence of each chunk. ends: (chunks,) int64, where each chunk ends.
    prefills: the chunks of sequences that do not decode yet.
    started: sequences that have taken a seat for this step.
    """

    def __init__(
        self, chunks: Seq[Chunk] = (), prefills: Seq[Chunk] | None = None, started: Seq[Sequence] = ()
    ) -> None:
        """Make the batch of any chunks. prefills: those of them that are, None for all."""
        self.lineup = Lineup(chunk.sequence for chunk in chunks)
        self.ends: Ints = np.array([chunk.end for chunk in chunks], np.int64)
        self.prefills = chunks if prefills is None else prefills
        self.started = started
        self.chunks = list(chunks)

    @staticmethod
    def of_decodes(lineup: Lineup, ends: Ints) -> "Batch":
        """Make the batch in which each sequence runs one token and samples the next. Does nothing for each of them."""
        batch = Batch.__new__(Batch)
        batch.lineup, batch.ends = lineup, ends
        batch.prefills = batch.started = ()
        return batch

    @staticmethod
    def by_adapter(chunks: Iterable[Chunk], prefills: Seq[Chunk], started: Seq[Sequence]) -> "Batch":
        """Make a batch with chunks of equal adapters side by side, so that each adapter's tokens are one segment."""
        return Batch(sorted(chunks, key=lambda chunk: chunk.sequence.slots), prefills, started)

    @cached_property
    def chunks(self) -> list[Chunk]:
        """Return the chunks, which a batch of decodes makes only when it is asked for them."""
        return [Chunk(s, end - 1, 1, True) for s, end in zip(self.lineup.sequences, self.ends.tolist(), strict=True)]

    def __bool__(self) -> bool:
        return len(self.lineup) > 0

    @property
    def only_decodes(self) -> bool:
        """Return whether every chunk is one token of a sequence that decodes."""
        return not self.prefills

    @property
    def scores_prompts(self) -> bool:
        """Return whether more rows reach the head than are sampled."""
        return any(chunk.num_logit_rows > chunk.samples for chunk in self.prefills)

    @property
    def num_tokens(self) -> int:
        return len(self.lineup) if self.only_decodes else sum(chunk.num_tokens for chunk in self.chunks)
