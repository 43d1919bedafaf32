"""Checks before any request is taken: steps as requests bring them give transformers' logits; the largest step runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from peftserve.kernels.attention.layout import Limits

from ...wire.messages import SamplingParams
from ..scheduling.batch import Batch, Chunk, Lineup
from ..scheduling.sequence import Sequence as EngineSequence
from .errors import UnservableModel, reason_of
from .rehearsal import Rehearsal
from .runner import ModelRunner
from .trace import check_logits


class _Part(NamedTuple):
    """A sequence of the check and where it lies in the cache."""

    rehearsal: Rehearsal
    sequence: EngineSequence


@dataclass(frozen=True)
class StartCheck:
    """The sequences of the check, and the room that there is for them.

    limits: of any step. num_pages, page_size: of the cache, whose pages nobody holds yet. exact: as of the trace.
    """

    rehearsals: Sequence[Rehearsal]
    limits: Limits
    num_pages: int
    page_size: int
    exact: bool = True

    def run(self, runner: ModelRunner) -> None:
        """Run all sequences side by side: chunks beside chunks, chunks beside decodes, and decodes alone.

        Raises UnservableModel unless each piece gives the logits that one pass of transformers gave its last token.
        """
        parts = self._parts()
        chunked, decoded = list[_Pair](), list[_Pair]()
        for step in range(max((len(part.rehearsal.logits) for part in parts), default=0)):
            for chunks in self._packed([part for part in parts if step < len(part.rehearsal.logits)], step):
                logits = _run(runner, [_chunk(part.sequence, *span) for part, span in chunks])
                for (part, (start, end)), row in zip(chunks, logits, strict=True):
                    if end == part.rehearsal.cuts[step + 1]:
                        (decoded if end - start == 1 else chunked).append((row, part.rehearsal.logits[step]))
        _check(chunked, "the paged KV cache, in chunks", self.exact)
        _check(decoded, "the paged KV cache, token by token", self.exact)

    def _parts(self) -> list[_Part]:
        """Give the sequences their pages, which are not in a row, as those of requests need not be.

        Where there are few, the longer ones are cut off, or left out.
        """
        free = [*range(0, self.num_pages, 2), *range(1, self.num_pages, 2)]
        parts = list[_Part]()
        for whole in sorted(self.rehearsals[: self.limits.spans], key=lambda whole: len(whole.token_ids)):
            held = whole.first(len(free) * self.page_size)
            taken = [free.pop() for _ in range(-(-len(held.token_ids) // self.page_size))]
            if taken:
                parts.append(_Part(held, _sequence(held.token_ids, taken, seat=len(parts))))
        return parts[::-1]

    def _packed(self, parts: Sequence[_Part], step: int) -> Iterator[list[tuple[_Part, tuple[int, int]]]]:
        """Yield the pieces of one step, in several batches if one may not have as many rows or sequences."""
        batch, rows = list[tuple[_Part, tuple[int, int]]](), 0
        for part in parts:
            begin, end = part.rehearsal.cuts[step : step + 2]
            for start in range(begin, end, self.limits.rows):
                stop = min(start + self.limits.rows, end)
                if batch and (rows + stop - start > self.limits.rows or len(batch) == self.limits.spans):
                    yield batch
                    batch, rows = [], 0
                batch.append((part, (start, stop)))
                rows += stop - start
        yield batch


_Pair = tuple[torch.Tensor, torch.Tensor]  # logits that a step gave, and those that it should have given


def run_largest_step(runner: ModelRunner, limits: Limits, num_pages: int, page_size: int) -> None:
    """Run a prefill of as many tokens as one step may have and the cache holds.

    Raises UnservableModel if it fails, such as for want of memory: it is better not to start than to stop at the first
    long prompt. What it needs stays at hand for the steps to come.
    """
    num_tokens = min(limits.rows, num_pages * page_size)
    longest = limits.positions // page_size * page_size or limits.positions  # whole pages, if they hold as much
    lengths = [min(longest, num_tokens - begin) for begin in range(0, num_tokens, longest)]
    spans, page = list[Chunk](), 0
    for seat, length in enumerate(lengths[: min(limits.spans, num_pages)]):
        pages = list(range(page, page - (-length // page_size)))
        spans.append(_chunk(_sequence([0] * length, pages, seat), 0, length))
        page += len(pages)
    try:
        runner.run(Batch(spans))
    except RuntimeError as error:
        raise UnservableModel(
            f"a step of {num_tokens} tokens fails ({str(error).splitlines()[0]}); a lower --max-batch-tokens or "
            "--kv-cache-tokens needs less memory"
        ) from error


def _run(runner: ModelRunner, chunks: Sequence[Chunk]) -> torch.Tensor:
    """Run a step as the scheduler would have it run. Returns logits (chunks, vocabulary)."""
    decodes = [chunk.start > 0 and chunk.num_tokens == 1 for chunk in chunks]
    if all(decodes):
        lineup = Lineup(chunk.sequence for chunk in chunks)
        batch = Batch.of_decodes(lineup, np.array([chunk.end for chunk in chunks], np.int64))
    else:
        batch = Batch(chunks, [chunk for chunk, decode in zip(chunks, decodes, strict=True) if not decode])
    try:
        return runner.run(batch).logits.clone()
    except Exception as error:  # of whatever the model does
        tokens = ", ".join(str(chunk.num_tokens) for chunk in chunks)
        raise UnservableModel(
            f"a step of {tokens} tokens of {len(chunks)} sequences fails: {reason_of(error)}"
        ) from error


def _check(pairs: Sequence[_Pair], what: str, exact: bool) -> None:
    if pairs:
        got, wanted = (torch.stack(logits).float() for logits in zip(*pairs, strict=True))
        check_logits(got, wanted, what, exact=exact)


def _chunk(sequence: EngineSequence, start: int, end: int) -> Chunk:
    return Chunk(sequence, start, end - start, samples=True)


def _sequence(prompt: list[int], pages: list[int], seat: int) -> EngineSequence:
    sequence = EngineSequence(
        request_id="self-check",
        prompt=prompt,
        sampling=SamplingParams(),
        adapters=(),
        salt="",
        seed=0,
        eos_token_ids=frozenset(),
    )
    sequence.pages, sequence.seat = pages, seat
    return sequence
