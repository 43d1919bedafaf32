"""The sequences of one HTTP request: planned, run side by side, closed together.

Knows the engine's messages and how text comes out of them; knows nothing of the forms in which clients get it.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from peftserve.adapters.resolved import Resolved

from ...wire.faults import received
from ...wire.messages import AddRequest, SamplingParams, SequenceOutput, WeightedAdapter
from ..assistant.reading import Reading
from ..engine.interface import EngineDead, RemoteEngine
from ..http.errors import bad_request
from ..metrics.requests import SequenceTimer
from ..services import Services
from ..tenancy.spending import TokenUse
from ..text.tokenizer import Tokenizer
from ..watching.record import RequestRecord, SequenceRecord
from .asking import asked_by
from .mailbox import Mailbox
from .requests import GenerationRequest
from .stop_strings import NO_STOPS, StopStrings, StopTable
from .text_deltas import Delta, SequenceDecoder

_ids = itertools.count(1)  # of this process's requests; the engine serves several processes

SUBMISSION = 30  # microseconds for a sequence to begin
TOKENS_SENT = 50  # of a prompt, in a microsecond
SEED_MASK = (1 << 63) - 1


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the engine takes it. text: as the client gave it, or None where it gave token ids."""

    token_ids: list[int]
    text: str | None = None


@dataclass(frozen=True)
class Plan:
    """The plan of one request: `samples` sequences for each prompt, each prompt with its own parameters.

    resolved: the adapters that answer, held until this turn of the event loop. adapters: the same for the engine.
    tokenizer: theirs, which has made the prompts. text: returns what routes judge content by.
    eos_token_ids: as `AddRequest` has them. reading: of a chat's messages; None where they are content only.
    """

    body: GenerationRequest
    resolved: Resolved
    adapters: list[WeightedAdapter]
    prompts: list[TokenizedPrompt]
    sampling: list[SamplingParams]
    samples: int
    tokenizer: Tokenizer
    salt: str = ""
    text: Callable[[], str] = str
    eos_token_ids: list[int] | None = None
    reading: Reading | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * self.samples

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self.prompts)


SequenceDelta = tuple[int, Delta]  # a sequence, and what a step showed of it


class Generation:
    """The sequences of one plan, for which `Services.hold` has given a lease.

    Sequence i answers prompt i // samples. begun: called when all are submitted. record: where they are noted, if they
    are.
    """

    def __init__(
        self,
        services: Services,
        plan: Plan,
        begun: Callable[[], None] | None = None,
        record: RequestRecord | None = None,
    ) -> None:
        self.plan = plan
        self.resolved = plan.resolved
        self._services = services
        self._begun = begun
        self._record = record
        self._labels = services.metrics.adapter_labels(plan.resolved)
        self._id = f"{os.getpid()}-{next(_ids)}"
        own_ends = services.model().eos_token_ids if plan.eos_token_ids is None else plan.eos_token_ids
        self._ends = frozenset(() if plan.body.ignore_eos else own_ends)
        most = sum(sampling.max_tokens for sampling in plan.sampling) * plan.samples
        self.use = TokenUse(plan.num_prompt_tokens, most)
        self._stops = StopTable(plan.body.stop) if plan.body.stop else NO_STOPS

    async def deltas(self) -> AsyncGenerator[list[SequenceDelta]]:
        """Yield the deltas of all sequences, each time all that have come.

        To be closed. Raises EngineDead, ApiError.
        """
        mailbox: Mailbox[SequenceDelta | Exception] = Mailbox()
        with self._running() as requests:
            await self._begin(requests, mailbox.put, mailbox.put)
            running = self.plan.num_sequences
            while running:
                items: list[SequenceDelta] = []
                for entry in await mailbox.take():
                    if isinstance(entry, Exception):
                        yield items
                        raise entry
                    items.append(entry)
                    running -= entry[1].finish_reason is not None
                yield items

    async def collect(self) -> list[Delta]:
        """Return every sequence as one delta, when the last has ended. Raises EngineDead, ApiError."""
        collector = _Collector(self.plan.num_sequences)
        with self._running() as requests:
            await self._begin(requests, collector.put, collector.fail)
            await collector.ended
        return collector.wholes

    @contextmanager
    def _running(self) -> Iterator[list[AddRequest]]:
        """A context in which all sequences run; those that have not ended when it is left are aborted."""
        requests = [self._request(index) for index in range(self.plan.num_sequences)]
        try:
            yield requests
        finally:
            for request in requests:
                self._services.engine.abort(request.request_id)

    async def _begin(
        self, requests: list[AddRequest], emit: Callable[[SequenceDelta], None], fail: Callable[[Exception], None]
    ) -> None:
        """Submit the sequences; a thousand of them in several turns of the event loop."""
        engine, turns = self._services.engine, Turns()
        self._services.metrics.prompt_tokens.inc(self.plan.num_prompt_tokens)
        if self._record is not None:
            self._record.ask(
                self.plan.body.model, self.plan.sampling[0], self.plan.num_prompt_tokens, self.plan.samples
            )
        for index, request in enumerate(requests):
            timer = SequenceTimer(self._services.metrics, self._labels)
            record = None if self._record is None else self._record.sequence()
            sink = _SequenceSink(
                engine, request.request_id, index, timer, self._decoder(), emit, fail, record, self.use
            )
            engine.submit(request, sink)
            await turns.spend(SUBMISSION + len(request.prompt_token_ids) // TOKENS_SENT)
        if self._begun is not None:
            self._begun()

    def _request(self, index: int) -> AddRequest:
        prompt, sample = divmod(index, self.plan.samples)
        sampling = self.plan.sampling[prompt]
        if sampling.seed is not None:
            sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + sample) & SEED_MASK)
        return AddRequest(
            request_id=f"{self._id}-{index}",
            prompt_token_ids=self.plan.prompts[prompt].token_ids,
            sampling=sampling,
            adapters=self.plan.adapters,
            salt=self.plan.salt,
            eos_token_ids=self.plan.eos_token_ids,
            added_tokens=() if sampling.grammar is None else self.plan.tokenizer.added,
            **asked_by(self._services, self.plan.body.priority),
        )

    def _decoder(self) -> SequenceDecoder:
        body, reading = self.plan.body, self.plan.reading
        shown = reading.marks if reading is not None else frozenset()
        return SequenceDecoder(
            self.plan.tokenizer.detokenizer(body.skip_special_tokens, shown),
            StopStrings(self._stops, body.include_stop_str_in_output),
            min_tokens=body.min_tokens or 0,
            show_stop_token=body.include_stop_str_in_output,
            ends=self._ends,
        )


class _SequenceSink:
    """Turn the engine's outputs of one sequence into deltas, as they come."""

    def __init__(
        self,
        engine: RemoteEngine,
        request_id: str,
        index: int,
        timer: SequenceTimer,
        decoder: SequenceDecoder,
        emit: Callable[[SequenceDelta], None],
        fail: Callable[[Exception], None],
        record: SequenceRecord | None,
        use: TokenUse,
    ) -> None:
        self._use = use
        self._engine = engine
        self._request_id = request_id
        self._index = index
        self._timer = timer
        self._decoder = decoder
        self._emit = emit
        self._fail = fail
        self._record = record

    def push(self, output: SequenceOutput) -> None:
        try:
            self._take(output)
        except Exception as error:  # of this request, and of no other
            self._fail(error)
            self._engine.abort(self._request_id)

    def fail(self, death: EngineDead) -> None:
        self._fail(death)

    def _take(self, output: SequenceOutput) -> None:
        if output.error_kind is not None:
            raise received(output.error_kind, output.error or "the request failed")
        if output.error is not None:
            raise bad_request(output.error, code="sequence_failed")
        self._timer.observe(output)
        self._use.generated += len(output.token_ids)
        delta = self._decoder.push(output)
        if self._record is not None:
            self._record.observe(output, delta.finish_reason)
        if delta.finish_reason is not None and output.finish_reason is None:
            self._engine.abort(self._request_id)  # a stop string, of which the engine does not know
        self._emit((self._index, delta))


class _Collector:
    """The sum of each sequence's deltas. ended: done when all have ended, or with the first error."""

    def __init__(self, count: int) -> None:
        self.wholes = [Delta() for _ in range(count)]
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = count

    def put(self, numbered: SequenceDelta) -> None:
        index, delta = numbered
        self.wholes[index].extend(delta)
        self._running -= delta.finish_reason is not None
        if not self._running and not self.ended.done():
            self.ended.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)


TURN = 4000  # microseconds, as estimated by who spends them


class Turns:
    """A budget of time on the event loop, for one piece of work after another; others run in between."""

    def __init__(self) -> None:
        self._left = TURN

    async def spend(self, microseconds: int) -> None:
        """Return at once while there is time left, else when all that waited has run."""
        self._left -= microseconds
        if self._left < 0:
            self._left = TURN
            await asyncio.sleep(0)
