"""One sequence's vector: what ends it, in any order."""

import asyncio
import struct

import pytest

from peftserve.adapters.errors import AdapterDamaged
from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.api.engine.vectors import embed
from peftserve.server.wire.messages import Pooling, SequenceOutput, WeightedAdapter


class Engine:
    """Keeps what it is given, and lets `act` answer at once."""

    def __init__(self, act):
        self.act = act
        self.requests = []
        self.aborted = []

    def submit(self, request, sink):
        self.requests.append(request)
        self.act(request.request_id, sink)

    def abort(self, request_id):
        self.aborted.append(request_id)


def _output(request_id, **fields):
    return SequenceOutput(request_id=request_id, token_ids=[], **fields)


async def test_a_request_asks_for_no_tokens_and_gets_its_numbers():
    engine = Engine(
        lambda name, sink: sink.push(_output(name, pooled=struct.pack("<2f", 0.5, -3), finish_reason="length"))
    )
    adapters = [WeightedAdapter("a", 0.5)]
    assert await embed(engine, [1, 2], Pooling("last", 3), adapters, "tenant") == [0.5, -3.0]
    (request,) = engine.requests
    assert (request.prompt_token_ids, request.adapters, request.salt) == ([1, 2], adapters, "tenant")
    assert (request.pooling, request.sampling.max_tokens) == (Pooling("last", 3), 0)


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda name, sink: sink.fail(EngineDead("gone")), EngineDead, "gone"),
        (lambda name, sink: sink.push(_output(name, error="too long")), ValueError, "too long"),
        (
            lambda name, sink: sink.push(_output(name, error="bytes", error_kind="AdapterDamaged")),
            AdapterDamaged,
            "bytes",
        ),
        (lambda name, sink: sink.push(_output(name, finish_reason="length")), ValueError, "no vector"),
    ],
)
async def test_what_goes_wrong_is_raised(act, error, text):
    with pytest.raises(error, match=text):
        await embed(Engine(act), [1], Pooling(), [], "")


async def test_one_that_is_cancelled_is_aborted_and_hears_no_more():
    sinks = []
    engine = Engine(lambda name, sink: sinks.append((name, sink)))
    waiting = asyncio.create_task(embed(engine, [1], Pooling(), [], ""))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    ((name, sink),) = sinks
    assert engine.aborted == [name]
    sink.push(_output(name, pooled=b"", finish_reason="length"))
    sink.fail(EngineDead("gone"))
