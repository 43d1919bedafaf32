"""Steps on their way through the device: launched, sampled, collected.

    launch N+1      the forward pass; tokens of step N that the host does not know go from the device to the device.
                    Its tokens are chosen right behind it, unless some need to know all that came before (penalties)
    collect N       its tokens reach the host, which ends what has ended
    choose N+1      where that has waited

The device has step N+1 to run, and mostly its tokens to choose, before the host looks at anything of step N, and runs
on while the host schedules step N+2. A sequence that ended in step N has run once too often by then: that token is
dropped.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from ..wire.faults import EngineFault
from ..wire.messages import SequenceOutput
from .completion import PendingStep
from .faults import of_step
from .model.inputs import Feed
from .model.runner import StepLogits
from .requests import ended_by
from .sampling import Append, Sampler
from .scheduling.batch import Batch
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import Sequence

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What runs a step: a `ModelRunner`, or one for all ranks."""

    @property
    def num_graphs(self) -> int: ...

    def run(
        self, batch: Batch, feed: Feed | None = None, also: Callable[[Append], None] | None = None
    ) -> StepLogits: ...

    def check_device(self) -> None:
        """Raise RuntimeError if no step will run any more: the process then ends."""


class Pipeline:
    """Runs batches one behind the other, and returns their outputs.

    end: called with each sequence that has ended, before sampling that waits for a step's tokens is enqueued.
    overlapped: whether a step is launched before the one ahead of it is collected. Without it, a step is collected
    first, which is best on a device that computes while the host calls it, such as a CPU.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        scheduler: Scheduler,
        end: Callable[[Sequence], None],
        *,
        overlapped: bool,
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._scheduler = scheduler
        self._end = end
        self._overlapped = overlapped
        self.num_failed = 0  # steps
        self.num_unsound = 0  # sequences that ended for numbers that are none
        self._started: PendingStep | None = None

    def __bool__(self) -> bool:
        """Return whether a step is under way."""
        return self._started is not None

    def advance(self, batch: Batch) -> list[SequenceOutput]:
        """Launch the batch, if any, and return the outputs of the step before; of this one if not overlapped."""
        step = self._launch(batch) if batch else None
        outputs = self._collect()
        if isinstance(step, PendingStep):
            outputs += self._go_on(step)
        elif step is not None:
            outputs += self._fail(batch, step)
        return outputs if self._overlapped else outputs + self._collect()

    def _launch(self, batch: Batch) -> PendingStep | EngineFault:
        try:
            step = PendingStep(self._sampler, batch)
            feed = self._started.feed if self._started else None
            step.launched(self._runner.run(batch, feed, also=step.tell))
        except Exception as error:
            logger.exception("a step of %d sequences could not be launched", len(batch.lineup))
            return of_step(error)
        return step

    def _go_on(self, step: PendingStep) -> list[SequenceOutput]:
        self._scheduler.launched(step.batch)
        try:
            step.tokens_known()
        except Exception as error:
            logger.exception("a step of %d sequences could not be sampled", len(step.batch.lineup))
            return self._fail(step.batch, of_step(error))
        self._started = step
        return []

    def _collect(self) -> list[SequenceOutput]:
        started, self._started = self._started, None
        if started is None:
            return []
        try:
            finished = started.finish()
        except Exception as error:
            logger.exception("a step of %d sequences failed", len(started.batch.lineup))
            return self._fail(started.batch, of_step(error))
        self.num_unsound += len(finished.unsound)
        for sequence in finished.ended:
            self._end(sequence)
        return finished.outputs

    def _fail(self, batch: Batch, fault: EngineFault) -> list[SequenceOutput]:
        """End the sequences of a step that failed, and forget all prefixes: its pages may be half-written.

        Raises RuntimeError if the device is lost and no step will run any more; the process then ends.
        """
        self._runner.check_device()
        self._scheduler.forget_prefixes()
        failed = [sequence for sequence in batch.lineup.sequences if not sequence.is_over]
        for sequence in failed:
            self._end(sequence)
        self.num_failed += 1
        return [ended_by(sequence.request_id, fault) for sequence in failed]
