"""A sequence that gives one vector of its prompt, and no tokens."""

import array
import asyncio
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol, Unpack

from ...wire.faults import received
from ...wire.messages import AddRequest, Pooling, SamplingParams, SequenceOutput, WeightedAdapter
from .interface import Asked, EngineDead, Sink


class Sequences(Protocol):
    """What runs sequences: every `RemoteEngine`."""

    def submit(self, request: AddRequest, sink: Sink) -> None: ...

    def abort(self, request_id: str) -> None: ...


async def embed(
    engine: Sequences,
    prompt: Sequence[int],
    pooling: Pooling,
    adapters: Sequence[WeightedAdapter],
    salt: str,
    **asked: Unpack[Asked],
) -> list[float]:
    """Run a prompt and return its vector, as `RemoteEngine.embed` does. A caller that is cancelled aborts it."""
    request = AddRequest(
        request_id=f"embed-{uuid.uuid4().hex}",
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(max_tokens=0),
        adapters=list(adapters),
        salt=salt,
        pooling=pooling,
        **asked,
    )
    return floats(await pooled(engine, request))


async def pooled(
    engine: Sequences, request: AddRequest, observe: Callable[[SequenceOutput], None] | None = None
) -> bytes:
    """Run a request for the vector of its prompt, and return that as float32 in little-endian.

    observe: told of the output. Raises ValueError for what this model cannot take, AdapterError, EngineFault,
    EngineDead. A caller that is cancelled aborts it.
    """
    sink = _VectorSink(observe)
    engine.submit(request, sink)
    try:
        return await sink.vector
    finally:
        engine.abort(request.request_id)


class _VectorSink:
    """The vector of one sequence, as a future."""

    def __init__(self, observe: Callable[[SequenceOutput], None] | None) -> None:
        self.vector: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._observe = observe

    def push(self, output: SequenceOutput) -> None:
        if self.vector.done():
            return
        if self._observe is not None:
            self._observe(output)
        if output.error_kind is not None:
            self.vector.set_exception(received(output.error_kind, output.error or "the request failed"))
        elif output.error is not None or output.pooled is None:
            self.vector.set_exception(ValueError(output.error or "the engine sent no vector"))
        else:
            self.vector.set_result(output.pooled)

    def fail(self, death: EngineDead) -> None:
        if not self.vector.done():
            self.vector.set_exception(death)


def floats(pooled: bytes) -> list[float]:
    """Return numbers from float32 in little-endian."""
    numbers = array.array("f", pooled)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
