"""The first rank's side: what it does to its runner and its slots, the others are told to do, too.

It alone schedules, samples and answers. A step is one message, so the others need no clock, no queue and no tokenizer,
and nothing that they decide by themselves could come to differ.
"""

import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path

from ..adapters.host_tier import digest_of
from ..adapters.loader import Load
from ..adapters.mirror import Mirror
from ..adapters.preparation import PreparedAdapter
from ..model.inputs import Feed
from ..model.runner import ModelRunner, StepLogits
from ..sampling import Append
from ..scheduling.batch import Batch, Chunk
from ..scheduling.sequence import Sequence
from . import messages
from .messages import Begin, Step, StepChunk
from .processes import RankLost, RankProcesses

logger = logging.getLogger(__name__)


class LeadingRunner:
    """A runner whose steps all ranks run."""

    def __init__(self, runner: ModelRunner, ranks: RankProcesses) -> None:
        self._runner = runner
        self._ranks = ranks
        self._told = ToldSequences()

    @property
    def num_graphs(self) -> int:
        return self._runner.num_graphs

    def run(self, batch: Batch, feed: Feed | None = None, also: Callable[[Append], None] | None = None) -> StepLogits:
        """Run a step on all ranks. Raises RankLost, whatever goes wrong: the others may wait in the middle of it."""
        self._ranks.check()
        self._ranks.tell(self._told.step(batch))
        try:
            return self._runner.run(batch, feed, also)
        except Exception as error:
            logger.debug("a step failed on the first rank: %s", error)
            self._ranks.fail()

    def check_device(self) -> None:
        """Raise RankLost: this is asked after a step has failed, and then the ranks are not at the same step."""
        self._ranks.fail()


class ToldSequences:
    """What the other ranks know of the sequences that run."""

    def __init__(self) -> None:
        self._numbers = count()
        self._known: dict[Sequence, tuple[int, int]] = {}  # the number of each, and of how many pages they know

    def step(self, batch: Batch) -> Step:
        """Return the message of a step."""
        ended = [sequence for sequence in self._known if sequence.is_over]
        numbers = [self._known.pop(sequence)[0] for sequence in ended]
        prompts = {chunk.sequence for chunk in batch.prefills}
        return Step([self._chunk(chunk, begins=chunk.sequence in prompts) for chunk in batch.chunks], numbers)

    def _chunk(self, chunk: Chunk, *, begins: bool) -> StepChunk:
        sequence = chunk.sequence
        number, pages = self._known.get(sequence) or (next(self._numbers), 0)
        self._known[sequence] = (number, len(sequence.pages))
        token_ids = sequence.tokens[chunk.start : chunk.end]
        begin = _begin(sequence) if begins else None
        new = [] if begins else sequence.pages[pages:]
        return StepChunk(number, chunk.start, token_ids, chunk.samples, chunk.fill, begin, new)


def _begin(sequence: Sequence) -> Begin:
    lease = sequence.lease
    slots, weights = ((), ()) if lease is None else (lease.slots, lease.weights)
    return Begin(
        [*slots],
        [*weights],
        sequence.active_from,
        sequence.num_prompt,
        sequence.wants_prompt_logprobs,
        [*sequence.pages],
    )


class LeadingMirror(Mirror):
    """Has the other ranks load, attach and detach their parts of what the first one does."""

    def __init__(self, ranks: RankProcesses) -> None:
        self._ranks = ranks
        self._waiting: dict[tuple[int, str], _SharedLoad] = {}

    def load(
        self, key: str, folder_of: Callable[[str], Path], slot: int, start: int, own: Load[PreparedAdapter]
    ) -> Load[PreparedAdapter]:
        load = self._waiting[slot, key] = _SharedLoad(own, self._ranks.count, self._listen)
        self._ranks.tell(messages.Load(key, str(folder_of(digest_of(key))), slot, start))
        return load

    def attach(self, slot: int) -> None:
        self._ranks.tell(messages.Attach(slot))

    def detach(self, slot: int) -> None:
        self._ranks.tell(messages.Detach(slot))

    def forget(self, digest: str) -> None:
        self._ranks.tell(messages.Forget(digest))

    def _listen(self) -> None:
        for answer in self._ranks.answers():
            load = self._waiting[answer.slot, answer.key]
            load.answered(answer.error)
            if not load.missing:
                del self._waiting[answer.slot, answer.key]


class _SharedLoad:
    """A load that is done when all ranks have done theirs."""

    def __init__(self, own: Load[PreparedAdapter], ranks: int, listen: Callable[[], None]) -> None:
        self.missing = ranks
        self._own = own
        self._listen = listen
        self._error: str | None = None

    def answered(self, error: str | None) -> None:
        self.missing -= 1
        self._error = self._error or error

    def done(self) -> bool:
        if self.missing:
            self._listen()
        return not self.missing and self._own.done()

    def result(self) -> PreparedAdapter:
        prepared = self._own.result()
        if self._error is not None:
            raise RankLost(f"an adapter could not be loaded on another rank: {self._error}")
        return prepared
