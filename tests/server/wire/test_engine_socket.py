"""The engine's socket with its clients, each a plain connection, in one thread."""

import socket
import threading

import msgspec
import pytest

from peftserve.server.wire.engine_socket import KNOCK, EngineSocket
from peftserve.server.wire.messages import (
    AbortRequest,
    AddRequest,
    EngineStats,
    Event,
    InspectAdapter,
    ModelInfo,
    Outputs,
    Reply,
    SamplingParams,
    SequenceOutput,
    Shutdown,
)
from peftserve.server.wire.transport import Connection, encode

DECODE = msgspec.msgpack.Decoder(Event).decode


class _Client(Connection):
    def __init__(self, door):
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(door, [KNOCK], [theirs.fileno()])
        super().__init__(ours)

    def say(self, *commands):
        for command in commands:
            self.send(encode(command))

    def events(self):
        return [DECODE(message) for message in self.receive()]


@pytest.fixture
def door():
    """Our side of the door."""
    ours, theirs = socket.socketpair()
    yield ours, theirs.detach()
    ours.close()


@pytest.fixture
def engine(door):
    engine = EngineSocket(door[1])
    yield engine
    engine.close()


@pytest.fixture
def connect(door):
    clients = []

    def connect():
        clients.append(_Client(door[0]))
        return clients[-1]

    yield connect
    for client in clients:
        client.close(0)


def _request(request_id):
    return AddRequest(request_id=request_id, prompt_token_ids=[1, 2], sampling=SamplingParams(logit_bias={5: -1.5}))


def _output(request_id, finish_reason=None):
    return SequenceOutput(request_id=request_id, token_ids=[7], finish_reason=finish_reason)


def _info():
    counts = dict.fromkeys(("vocab_size", "max_model_len", "num_kv_pages", "page_size", "max_running", "max_loras"), 8)
    texts = dict.fromkeys(("model_name", "architecture", "dtype", "device"), "x")
    rest = {"eos_token_ids": [], "max_adapter_rank": 8, "special_tokens": {}, "pid": 1}
    return ModelInfo(**counts, **texts, **rest, tokenizer=None, chat_template=None)


def _take_in(engine, connect, count=2):
    clients = [connect() for _ in range(count)]
    assert engine.poll(0) == []
    return clients


def test_commands_arrive_in_order_and_before_the_engine_comes_to_its_door(engine, connect):
    client = connect()
    client.say(_request("a"), AbortRequest("a"), Shutdown())
    assert [*engine.poll(1), *engine.poll(1)] == [_request("a"), AbortRequest("a"), Shutdown()]


def test_outputs_go_to_whose_sequence_it_is_until_it_has_ended(engine, connect):
    first, second = _take_in(engine, connect)
    first.say(_request("a"), _request("b"))
    second.say(_request("c"))
    engine.poll(1)
    engine.send(Outputs([_output("a"), _output("c", "stop"), _output("b", "length"), _output("nobody's")]))
    engine.send(Outputs([_output("a"), _output("b"), _output("c")]))
    assert first.events() == [Outputs([_output("a"), _output("b", "length")]), Outputs([_output("a")])]
    assert second.events() == [Outputs([_output("c", "stop")])]


def test_replies_go_to_who_asked_and_all_else_to_everyone(engine, connect):
    first, second = _take_in(engine, connect)
    engine.send(_info())
    second.say(InspectAdapter(7, "d", "/x"))
    engine.poll(1)
    engine.send(EngineStats(num_running=2))
    engine.send(Reply(7))
    assert first.events() == [_info(), EngineStats(num_running=2)]
    assert second.events() == [_info(), EngineStats(num_running=2), Reply(7)]
    late = connect()
    engine.poll(1)
    assert late.events() == [_info()]


def test_a_client_that_leaves_aborts_its_sequences_and_no_others(engine, connect):
    first, second = _take_in(engine, connect)
    first.say(_request("a"), _request("b"), _request("c"), AbortRequest("c"), InspectAdapter(7, "d", "/x"))
    second.say(_request("x"))
    engine.poll(1)
    engine.send(Outputs([_output("b", "stop")]))
    first.close(0)
    engine.send(Outputs([_output("a"), _output("x")]))
    assert engine.poll(1) == [AbortRequest("a")]
    engine.send(Reply(7))
    engine.send(Outputs([_output("a"), _output("x")]))
    assert second.events() == [Outputs([_output("x")])] * 2
    assert engine.poll(0) == []


def test_the_engine_never_blocks_on_a_client_that_does_not_read(engine, connect):
    (client,) = _take_in(engine, connect, 1)
    client.say(_request("a"))
    engine.poll(1)
    for _ in range(20_000):  # far beyond the kernel's buffers
        engine.send(Outputs([_output("a")]))
    heard = []
    while len(heard) < 20_000:
        heard += client.events()
        engine.poll(0)
    assert heard == [Outputs([_output("a")])] * 20_000
    assert engine.poll(0.01) == []


def test_without_memory_messages_wait_and_none_is_lost(engine, connect, monkeypatch):
    """Whether a message cannot be read or cannot be sent: later ones stay behind it, and others' go on."""
    first, second = _take_in(engine, connect)
    first.say(_request("a"), AbortRequest("unknown"), _request("b"))
    decode, left = engine._decode, [3]

    def scarce(call):
        def tried(*arguments):
            if left[0]:
                left[0] -= 1
                raise MemoryError
            return call(*arguments)

        return tried

    monkeypatch.setattr(engine, "_decode", scarce(decode))
    commands = [engine.poll(0.01) for _ in range(5)]
    assert commands[:3] == [[], [], []]
    assert [command for there in commands for command in there] == [
        _request("a"),
        AbortRequest("unknown"),
        _request("b"),
    ]
    second.say(_request("c"))
    assert engine.poll(1) == [_request("c")]
    left[0] = 2
    monkeypatch.setattr("peftserve.server.wire.engine_socket.encode", scarce(encode))
    engine.send(Outputs([_output("a")]))
    engine.send(Outputs([_output("a")]))
    engine.send(Outputs([_output("c", "stop"), _output("a"), _output("b", "stop")]))
    assert engine.poll(0.01) == []
    one = Outputs([_output("a")])
    assert first.events() == [one, one, Outputs([_output("a"), _output("b", "stop")])]
    assert second.events() == [Outputs([_output("c", "stop")])]
    left[0] = 10**9
    first.say(_request("d"))
    assert engine.poll(0.01) == []
    first.close(0)
    left[0] = 0
    read, *aborted = [command for _ in range(3) for command in engine.poll(0.05)]
    assert read == _request("d")
    assert sorted(abort.request_id for abort in aborted) == ["a", "d"]


def test_poll_wakes_for_a_command(engine, connect):
    (client,) = _take_in(engine, connect, 1)
    timer = threading.Timer(0.05, client.say, [Shutdown()])
    timer.start()
    assert engine.poll(None) == [Shutdown()]
    timer.join()


def test_a_parent_that_has_gone_does_not_keep_the_loop_awake(engine, door):
    door[0].close()
    engine.poll(1)
    assert engine.poll(0.01) == []
