"""The engine: takes requests, runs steps, and returns the tokens of each step.

One thread calls everything here. Nothing in `step` waits for a client, a disk or an adapter.
"""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import TypeVar

from peftserve.adapters.facts import AdapterFacts

from ..config import EngineConfig
from ..wire.faults import EngineFault
from ..wire.messages import AdapterLevel, AddRequest, EngineStats, SequenceOutput
from .faults import of_adapter
from .grammar.compiler import GrammarCompiler, words_of
from .grammar_queue import Compiled, GrammarQueue
from .machine import make_machine
from .memory_report import describe_memory
from .model.pooling import check_kind
from .model_info import describe_model
from .pipeline import Pipeline, Runner
from .ranks import LeadingRanks
from .requests import check_request, count_adapters, ended_by, failed, make_sequence, not_loaded, refusal, timed_out
from .sampling import Sampler
from .scheduling.page_pool import PagePool
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import Lease, Sequence
from .scheduling.snapshots import Snapshots
from .scheduling.start_limits import StartLimits
from .staging import is_host

logger = logging.getLogger(__name__)

T = TypeVar("T")

IDLE_SECONDS = 0.0005  # what an empty step waits for an adapter's load, so that a caller's loop does not spin


class Engine:
    """The model of a configuration with its KV cache, its adapters and its scheduler.

    To make one loads the model. Raises UnservableModel if it cannot be served right.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._ranks = None if config.tensor_parallel_size == 1 else LeadingRanks(config)
        machine = make_machine(config) if self._ranks is None else self._ranks.lead()
        self._config, loaded, num_pages, slots = machine.config, machine.loaded, machine.num_pages, machine.slots
        self._model, self._hidden = loaded.model, loaded.hidden
        self.adapters = machine.adapters
        self._max_model_len = machine.max_model_len
        own = machine.runner
        self._runner: Runner = own if self._ranks is None else self._ranks.runner(own)
        config = machine.config
        self._scheduler = Scheduler(
            PagePool(num_pages),
            self.adapters.residency,
            page_size=config.page_size,
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            prefix_caching=config.prefix_caching,
            refuse=self._refuse,
            snapshots=Snapshots(range(slots.sequences, sum(slots))),
            keeps_state=machine.states is not None,
        )
        self.memory = describe_memory(
            config, loaded, self.adapters, packed=machine.products.packed, num_pages=num_pages, slots=slots
        )
        logger.info("%s", self.memory)
        num_graphs = None if is_host(loaded.device) else self._runner.num_graphs
        self.info = describe_model(config, loaded, num_pages, self._max_model_len, num_graphs)
        sampler = Sampler(loaded.trace.logits.shape[-1], loaded.device, config.max_running)
        sampler.warm_up(loaded.trace.logits.dtype)
        overlapped = loaded.device.type == "cuda" if config.async_scheduling is None else config.async_scheduling
        self._pipeline = Pipeline(self._runner, sampler, self._scheduler, self._end, overlapped=overlapped)
        self._sequences: dict[str, Sequence] = {}
        self._failures: list[SequenceOutput] = []  # of the step that goes on, until it returns them
        self._start_limits = StartLimits()
        self._forming = GrammarQueue(GrammarCompiler(words_of(self.info)))
        self._arrivals = count()
        self._steps = 0

    # Requests

    def add_request(self, request: AddRequest) -> None:
        """Queue a request.

        Raises ValueError if it could never be served: no prompt, too long, unknown tokens, too many adapters, pooled
        hidden states that the model does not have.
        """
        check_request(request, self.info.vocab_size, self._max_model_len)
        if request.pooling is not None:
            check_kind(request.pooling.kind)
            self._hidden.check(request.pooling.layer)
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is in use")
        sequence = make_sequence(
            request, arrival=next(self._arrivals), eos_token_ids=self.info.eos_token_ids, max_len=self._max_model_len
        )
        if len(sequence.adapters) > self._config.max_loras:
            raise ValueError(f"a mixture of {len(sequence.adapters)} adapters needs --max-loras of at least as many")
        self._start_limits.add(sequence)
        if request.sampling.grammar is None:
            self._scheduler.add(sequence)
        else:
            self._forming.add(sequence, request.added_tokens)
        self._sequences[request.request_id] = sequence

    def abort(self, request_id: str) -> None:
        """Forget a sequence and free its pages. Unknown ids are ignored: it may just have ended."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return
        sequence.is_over = True
        if not self._forming.remove(sequence):
            self._scheduler.remove(sequence)

    def has_work(self) -> bool:
        return bool(self._sequences or self._pipeline)

    # Steps

    def step(self) -> list[SequenceOutput]:
        """Let the device run a step, and return the outputs that have become known.

        These are none while everything waits for adapters, or for the first step's tokens.
        """
        self._check_ranks()
        for fail in (self._fail_unloadable, self._fail_expired, self._queue_formed):
            self._failures += fail()
        batch = self._scheduler.schedule()
        self._failures += self._fail_refused()
        outputs: list[SequenceOutput] = []
        if batch or self._pipeline:
            self._steps += bool(batch)
            outputs = self._pipeline.advance(batch)
        elif self.has_work():
            time.sleep(IDLE_SECONDS)
        failures, self._failures = self._failures, []
        return failures + outputs

    def fail_all(self, fault: EngineFault) -> list[SequenceOutput]:
        """End all sequences, such as when a step could not even be scheduled, and return their last outputs.

        Raises AssertionError if the books do not agree after that: the engine cannot go on.
        """
        failures, self._failures = self._failures, []
        for sequence in [*self._sequences.values()]:
            self.abort(sequence.request_id)
            failures.append(ended_by(sequence.request_id, fault))
        self._scheduler.forget_prefixes()
        self.check_integrity()
        return failures

    def _end(self, sequence: Sequence) -> None:
        self.abort(sequence.request_id)

    def _fail_unloadable(self) -> list[SequenceOutput]:
        self.adapters.poll(self._uses)
        outputs = []
        for digests, raised in self.adapters.take_failures().items():
            error = of_adapter(raised)
            for sequence in [s for s in self._sequences.values() if {p.key for p in s.adapters}.issuperset(digests)]:
                outputs.append(not_loaded(sequence, error))
                self.abort(sequence.request_id)
        return outputs

    def _fail_expired(self) -> list[SequenceOutput]:
        """End the sequences that have waited longer for their first step than they may."""
        expired = self._start_limits.take_expired(time.monotonic())
        for sequence in expired:
            self.abort(sequence.request_id)
        return [timed_out(sequence) for sequence in expired]

    def _queue_formed(self) -> list[SequenceOutput]:
        """Queue the sequences whose grammars have been compiled, and end those whose cannot be."""
        compiled = self._forming.take() if self._forming else Compiled([], [])
        for sequence in compiled.ready:
            self._scheduler.add(sequence)
        for sequence, _ in compiled.failed:
            del self._sequences[sequence.request_id]
            sequence.is_over = True
        return [failed(sequence, why) for sequence, why in compiled.failed]

    def _fail_refused(self) -> list[SequenceOutput]:
        refused, self._scheduler.refused = self._scheduler.refused, []
        for sequence, _ in refused:
            self.abort(sequence.request_id)
        return [failed(sequence, why) for sequence, why in refused]

    def _refuse(self, sequence: Sequence, lease: Lease) -> str | None:
        return refusal(sequence, lease, self.info.vocab_size, self._max_model_len)

    # Adapters

    def inspect_adapter(self, digest: str, folder: Path) -> AdapterFacts:
        """Compile a checkpoint and keep it at hand under `digest`. Raises AdapterError."""
        return self.start_inspection(digest, folder).result()

    def start_inspection(self, digest: str, folder: Path, tenant: str = "") -> Future[AdapterFacts]:
        """Begin to inspect a checkpoint. tenant: whose it is; tenants take turns."""
        return self.adapters.inspect(digest, folder, tenant)

    def release_adapter(self, digest: str) -> None:
        """Give back an adapter's memory. Raises ValueError while a request uses it."""
        if self._uses(digest):
            raise ValueError("a request uses this adapter")
        self._wait_for(self.start_release(digest))

    def start_release(self, digest: str) -> Future[None]:
        """Begin to give back an adapter's memory, as soon as no request uses it: call `poll` or `step` until then."""
        return self.adapters.release(digest)

    def load_adapter(self, digest: str) -> AdapterLevel:
        """Bring an adapter to the device, ahead of use. Returns where it is then. Raises AdapterError."""
        return self._wait_for(self.start_load(digest))

    def start_load(self, digest: str) -> Future[AdapterLevel]:
        """Begin to bring an adapter to the device: call `poll` or `step` until that is done."""
        return self.adapters.ahead.load(digest)

    def pin_adapters(self, digests: Iterable[str]) -> None:
        """Keep these adapters, and no others, on the device. Raises AdapterError; see `AheadOfUse.pin`."""
        self._wait_for(self.start_pinning(digests))

    def start_pinning(self, digests: Iterable[str]) -> Future[None]:
        """Begin to pin adapters: call `poll` or `step` until that is done."""
        return self.adapters.ahead.pin(digests)

    def poll(self) -> None:
        """Take in loads and releases that have finished: what an idle engine does instead of steps."""
        self._check_ranks()
        self.adapters.poll(self._uses)
        self.adapters.take_failures()  # no sequence waits for what could not be loaded; whoever asks next tries again

    def _check_ranks(self) -> None:
        """Raise RankLost if the base is divided and another rank has ended."""
        if self._ranks is not None:
            self._ranks.check()

    def _wait_for(self, work: Future[T]) -> T:
        while not work.done():
            self.adapters.poll(self._uses)
            time.sleep(IDLE_SECONDS)
        return work.result()

    def _uses(self, digest: str) -> bool:
        return any(adapter.digest == digest for sequence in self._sequences.values() for adapter in sequence.adapters)

    # Statistics

    @property
    def rank_pids(self) -> list[int]:
        """Return the process ids of the other ranks, if the base is divided."""
        return [] if self._ranks is None else self._ranks.pids

    @property
    def num_failed_steps(self) -> int:
        return self._pipeline.num_failed

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        waiting = [*scheduler.waiting, *scheduler.preempted]
        return EngineStats(
            **scheduler.stats(),
            num_waiting=len(waiting) + len(self._forming),
            queue_timeouts=self._start_limits.num_expired,
            failed_steps=self._pipeline.num_failed,
            invalid_logits=self._pipeline.num_unsound,
            steps=self._steps,
            running_adapters=count_adapters(scheduler.running),
            waiting_adapters=count_adapters(waiting),
            **self.adapters.stats(),
        )

    def check_integrity(self) -> None:
        """Raises AssertionError where the books of pages, slots and ranges do not agree."""
        self._scheduler.check_integrity()
        self.adapters.check_integrity()

    def close(self) -> None:
        self._forming.close()
        self.adapters.close()
        if self._ranks is not None:
            self._ranks.close()
