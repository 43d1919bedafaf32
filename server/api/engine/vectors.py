"""A sequence that gives one vector of its prompt, and no tokens."""

import array
import asyncio
import sys
import uuid
from collections.abc import Sequence
from typing import Protocol

from peftserve.adapters.errors import error_of

from ...wire.messages import AddRequest, Pooling, SamplingParams, SequenceOutput, WeightedAdapter
from .interface import EngineDead, Sink


class Sequences(Protocol):
    """What runs sequences: every `RemoteEngine`."""

    def submit(self, request: AddRequest, sink: Sink) -> None: ...

    def abort(self, request_id: str) -> None: ...


async def embed(
    engine: Sequences, prompt: Sequence[int], pooling: Pooling, adapters: Sequence[WeightedAdapter], salt: str
) -> list[float]:
    """Run a prompt and return its vector, as `RemoteEngine.embed` does. A caller that is cancelled aborts it."""
    request = AddRequest(
        request_id=f"embed-{uuid.uuid4().hex}",
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(max_tokens=0),
        adapters=list(adapters),
        salt=salt,
        pooling=pooling,
    )
    sink = _VectorSink()
    engine.submit(request, sink)
    try:
        return await sink.vector
    finally:
        engine.abort(request.request_id)


class _VectorSink:
    """The vector of one sequence, as a future."""

    def __init__(self) -> None:
        self.vector: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()

    def push(self, output: SequenceOutput) -> None:
        if self.vector.done():
            return
        if output.error_kind is not None:
            self.vector.set_exception(error_of(output.error_kind, output.error or "the request failed"))
        elif output.error is not None or output.pooled is None:
            self.vector.set_exception(ValueError(output.error or "the engine sent no vector"))
        else:
            self.vector.set_result(_floats(output.pooled))

    def fail(self, death: EngineDead) -> None:
        if not self.vector.done():
            self.vector.set_exception(death)


def _floats(pooled: bytes) -> list[float]:
    """Return numbers from float32 in little-endian."""
    numbers = array.array("f", pooled)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
