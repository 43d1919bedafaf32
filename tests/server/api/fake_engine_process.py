"""An engine process without a model: speaks the real transport, answers with the prompt's tokens in turn.

Run as `python fake_engine_process.py DOOR CONFIG`; the model's name chooses what goes wrong: `fails` says
EngineFailed, `once:FILE` does so where the file is, `crashes` exits, `loads` never ends loading, `garbage` sends what
is no message, `slow` gives a token each 50 ms, `flood` as many as one wants, `kills` is killed by any inspection, and
`holds:FILE` is as slow and keeps the last token of each sequence until the file is there, `waits:FILE` is as slow and
loads for as long as the file is there.
"""

import os
import signal
import struct
import sys
import time
from pathlib import Path

import msgspec

from peftserve.adapters.facts import AdapterFacts
from peftserve.server.wire.engine_socket import EngineSocket
from peftserve.server.wire.framing import framed
from peftserve.server.wire.launch import exit_with_parent, parse_engine_arguments
from peftserve.server.wire.messages import (
    AbortRequest,
    AddRequest,
    Beat,
    Call,
    EngineFailed,
    EngineStats,
    InspectAdapter,
    LoadAdapter,
    ModelInfo,
    Outputs,
    PinAdapters,
    Reply,
    SequenceOutput,
    Shutdown,
)

INFO = ModelInfo(
    model_name="fake",
    architecture="Fake",
    dtype="float32",
    device="cpu",
    vocab_size=100,
    max_model_len=64,
    eos_token_ids=[0],
    num_kv_pages=8,
    page_size=16,
    max_running=4,
    max_loras=2,
    max_adapter_rank=64,
    tokenizer=None,
    chat_template=None,
    special_tokens={},
    pid=0,
)


def main() -> None:
    door, config = parse_engine_arguments(sys.argv[1:])
    exit_with_parent()
    socket = EngineSocket(door)
    if config.model == "fails" or (config.model.startswith("once:") and Path(config.model[5:]).exists()):
        socket.send(EngineFailed("no such model"))
        socket.close()
        sys.exit(1)
    if config.model == "crashes":
        sys.exit(3)
    if config.model == "loads":
        time.sleep(3600)
    kind, _, file = config.model.partition(":")
    while kind == "waits" and Path(file).exists():
        time.sleep(0.02)
    socket.send(msgspec.structs.replace(INFO, max_model_len=1 << 24) if config.model == "flood" else INFO)
    if config.model == "garbage":
        for client in socket._clients.values():
            client.connection.send(framed(b"\xc1"))
    gate = Path(file) if kind == "holds" else None
    serve(socket, 0.05 if kind in ("slow", "holds", "waits") else 0.0, gate, is_mortal=config.model == "kills")
    socket.close()


def serve(socket: EngineSocket, delay: float, gate: Path | None, *, is_mortal: bool) -> None:
    running: dict[str, tuple[AddRequest, int]] = {}
    while True:
        socket.send(Beat())
        for command in socket.poll(0.5 if not running else delay):
            if isinstance(command, Shutdown):
                return
            if isinstance(command, AddRequest):
                running[command.request_id] = (command, 0)
            elif isinstance(command, AbortRequest):
                running.pop(command.request_id, None)
            elif is_mortal and isinstance(command, InspectAdapter):
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                socket.send(reply(command))
            socket.send(EngineStats(num_running=len(running), steps=1))
        time.sleep(delay)
        if outputs := step(running, may_end=gate is None or gate.exists()):
            socket.send(Outputs(outputs))


def reply(command: Call) -> Reply:
    if isinstance(command, PinAdapters):
        error = ("AdapterConflict", "1 adapters can be pinned") if len(command.digests) > 1 else ()
        return Reply(command.call_id, None, *error)
    if command.digest == "never":
        time.sleep(3600)
    if command.digest == "bad":
        return Reply(command.call_id, None, "InvalidAdapter", "rank is 0", "adapter_config.json")
    if isinstance(command, LoadAdapter):
        return Reply(command.call_id, level="device")
    if isinstance(command, InspectAdapter):
        facts = AdapterFacts(method="LORA", rank=8, num_bytes=64, primitives={}, sites=2, consumed=4)
        return Reply(command.call_id, facts)
    return Reply(command.call_id)


def step(running: dict[str, tuple[AddRequest, int]], *, may_end: bool) -> list[SequenceOutput]:
    outputs = []
    for request_id, (request, done) in list(running.items()):
        if request.pooling is not None:
            outputs.append(pooled(request))
            del running[request_id]
            continue
        token = request.prompt_token_ids[done % len(request.prompt_token_ids)]
        last = done + 1 == request.sampling.max_tokens
        if last and not may_end:
            continue
        outputs.append(
            SequenceOutput(request_id=request_id, token_ids=[token], finish_reason="length" if last else None)
        )
        if last:
            del running[request_id]
        else:
            running[request_id] = (request, done + 1)
    return outputs


def pooled(request: AddRequest) -> SequenceOutput:
    if request.pooling and request.pooling.layer == 99:
        return SequenceOutput(request_id=request.request_id, token_ids=[], error="there is no layer 99")
    vector = struct.pack("<3f", *request.prompt_token_ids)
    return SequenceOutput(request_id=request.request_id, token_ids=[], pooled=vector, finish_reason="length")


if __name__ == "__main__":
    main()
