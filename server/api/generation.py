"""The sequences of one HTTP request: planned, run side by side, closed together.

Knows the engine's messages and how text comes out of them; knows nothing of the forms in which clients get it.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from peftserve.adapters.router import Resolved

from ..wire.messages import AdapterPart, AddRequest, SamplingParams
from .engine import EngineDead
from .errors import bad_request
from .mailbox import Mailbox
from .metrics import SequenceTimer
from .schema import GenerationRequest
from .sequence import Delta, SequenceDecoder
from .services import Services
from .stop_strings import StopStrings

_ids = itertools.count(1)  # for the engine, which serves this process only

SEED_MASK = (1 << 63) - 1

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """text: as the client gave it, or None where it gave token ids."""

    token_ids: list[int]
    text: str | None = None


@dataclass(frozen=True)
class Plan:
    """What one request asks of the engine: `samples` sequences for each prompt, each prompt with its own parameters.

    resolved: who answers, as looked up in this turn of the event loop. adapters: the same for the engine.
    """

    body: GenerationRequest
    resolved: Resolved
    adapters: list[AdapterPart]
    prompts: list[Prompt]
    sampling: list[SamplingParams]
    samples: int
    salt: str = ""

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * self.samples

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self.prompts)


Said = tuple[int, Delta]  # a sequence, and what a step showed of it


class Generation:
    """Held by `Services.hold` while it runs. Sequence i answers prompt i // samples."""

    def __init__(self, services: Services, plan: Plan) -> None:
        self.plan = plan
        self.resolved = plan.resolved
        self._services = services
        self._labels = services.metrics.adapter_labels(plan.resolved)
        self._id = next(_ids)

    def deltas(self) -> AsyncGenerator[list[Said]]:
        """What the sequences say, each time all that has come. To be closed. Raises EngineDead, ApiError."""
        self._services.metrics.prompt_tokens.inc(self.plan.num_prompt_tokens)
        streams = [self._run(index) for index in range(self.plan.num_sequences)]
        return streams[0] if len(streams) == 1 else merge(streams)

    async def collect(self) -> list[Delta]:
        """Every sequence, whole."""
        wholes = [Delta() for _ in range(self.plan.num_sequences)]
        async with aclosing(self.deltas()) as deltas:
            async for said in deltas:
                for index, delta in said:
                    wholes[index].extend(delta)
        return wholes

    async def _run(self, index: int) -> AsyncGenerator[list[Said]]:
        """One sequence. Leaving early, for a stop string or a client that is gone, aborts it in the engine."""
        timer = SequenceTimer(self._services.metrics, self._labels)
        decoder = self._decoder()
        async with aclosing(self._services.engine.generate(self._request(index))) as batches:
            async for outputs in batches:
                said: list[Said] = []
                for output in outputs:
                    if output.error is not None:
                        yield said
                        raise bad_request(output.error, code="sequence_failed")
                    timer.observe(output)
                    delta = decoder.push(output)
                    said.append((index, delta))
                    if delta.finish_reason is not None:
                        yield said
                        return
                yield said
        raise EngineDead("a sequence ended without a reason")

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
        )

    def _decoder(self) -> SequenceDecoder:
        body = self.plan.body
        return SequenceDecoder(
            self._services.tokenizer().detokenizer(body.skip_special_tokens),
            StopStrings(body.stop, body.include_stop_str_in_output),
            min_tokens=body.min_tokens or 0,
            show_stop_token=body.include_stop_str_in_output,
        )


async def merge(streams: Sequence[AsyncGenerator[list[T]]]) -> AsyncGenerator[list[T]]:
    """The items of all streams as they come. The first error, or leaving early, closes all of them."""
    mailbox: Mailbox[list[T] | Exception | None] = Mailbox()
    pumps = [asyncio.create_task(_pump(stream, mailbox)) for stream in streams]
    try:
        running = len(pumps)
        while running:
            items: list[T] = []
            for entry in await mailbox.take():
                if isinstance(entry, Exception):
                    yield items
                    raise entry
                if entry is None:
                    running -= 1
                else:
                    items += entry
            yield items
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(stream: AsyncGenerator[list[T]], mailbox: Mailbox[list[T] | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for items in stream:
                mailbox.put(items)
        mailbox.put(None)
    except Exception as error:
        mailbox.put(error)
