"""The sequences of one HTTP request: planned, run side by side, closed together.

Knows the engine's messages and how text comes out of them; knows nothing of the forms in which clients get it.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from peftserve.adapters.router import Resolved

from ..wire.messages import AdapterPart, AddRequest, SamplingParams
from .engine import EngineDead
from .errors import bad_request
from .metrics import SequenceTimer
from .schema import GenerationRequest
from .sequence import Delta, SequenceDecoder
from .services import Services
from .stop_strings import StopStrings

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


class Generation:
    """Held by `Services.hold` while it runs. Sequence i answers prompt i // samples."""

    def __init__(self, services: Services, plan: Plan) -> None:
        self.plan = plan
        self.resolved = plan.resolved
        self._services = services
        self._labels = services.metrics.adapter_labels(plan.resolved)
        self._id = uuid.uuid4().hex

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """(sequence, delta) as they come. Raises EngineDead, ApiError."""
        async with aclosing(merge(self._streams())) as merged:
            async for item in merged:
                yield item

    async def collect(self) -> list[Delta]:
        """Every sequence, whole."""
        wholes = [Delta() for _ in range(self.plan.num_sequences)]
        async with aclosing(self.deltas()) as deltas:
            async for index, delta in deltas:
                wholes[index].extend(delta)
        return wholes

    def _streams(self) -> list[AsyncGenerator[Delta]]:
        self._services.metrics.prompt_tokens.inc(self.plan.num_prompt_tokens)
        return [self._run(index) for index in range(self.plan.num_sequences)]

    async def _run(self, index: int) -> AsyncGenerator[Delta]:
        """One sequence. Leaving early, for a stop string or a client that is gone, aborts it in the engine."""
        timer = SequenceTimer(self._services.metrics, self._labels)
        decoder = self._decoder()
        async with aclosing(self._services.engine.generate(self._request(index))) as outputs:
            async for output in outputs:
                if output.error is not None:
                    raise bad_request(output.error, code="sequence_failed")
                timer.observe(output)
                delta = decoder.push(output)
                yield delta
                if delta.finish_reason is not None:
                    return
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


async def merge(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """(stream, item) of all streams as they come. The first error, or leaving early, closes all of them."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(i, stream, queue)) for i, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            entry = await queue.get()
            if entry is None:
                running -= 1
            elif isinstance(entry, Exception):
                raise entry
            else:
                yield entry
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(index: int, stream: AsyncGenerator[T], queue: asyncio.Queue[tuple[int, T] | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                queue.put_nowait((index, item))
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)
