"""An engine process that answers at once, and the server around it, for `front_end.py` and `stalls.py`.

    python benchmarks/serving/instant_engine.py serve PORT STATE STEP_MS [API_WORKERS]   # starts the engine too
    python benchmarks/serving/instant_engine.py engine DOOR CONFIG

It speaks the real wire protocol: a step is one message with a token of every running sequence. STEP_MS is the time from
one step to the next; 0 is none.
"""

import sys
import time
from itertools import cycle, islice
from pathlib import Path

from peftserve.server.config import EngineConfig, ServerConfig
from peftserve.server.demo import DEMO_MODEL
from peftserve.server.wire.engine_socket import EngineSocket
from peftserve.server.wire.launch import encode_config, exit_with_parent, parse_engine_arguments
from peftserve.server.wire.messages import AddRequest, EngineStats, ModelInfo, Outputs, SequenceOutput, Shutdown

TEXT = "The quick brown fox jumps over the lazy dog, and then it writes a query: SELECT name FROM animals; "
STATS_SECONDS = 0.25  # as the real engine


def engine(*arguments: str) -> None:
    door, chosen = parse_engine_arguments(arguments)
    exit_with_parent()
    socket = EngineSocket(door)
    socket.send(_info())
    _Loop(socket, float(chosen.model) / 1000).run()
    socket.close()


class _Loop:
    def __init__(self, socket: EngineSocket, step_seconds: float) -> None:
        self._socket = socket
        self._step_seconds = step_seconds
        self._tokens = list(islice(cycle(_text_tokens()), 4096))
        self._running: dict[str, int] = {}  # request id to tokens that are still to come
        self._open = True
        self._stats_due = 0.0

    def run(self) -> None:
        while self._open:
            due = time.monotonic() + self._step_seconds
            for command in self._socket.poll(0.0 if self._running else 1.0):
                if isinstance(command, AddRequest):
                    self._running[command.request_id] = command.sampling.max_tokens
                self._open = self._open and not isinstance(command, Shutdown)
            self._say_stats()
            if self._running:
                self._socket.send(Outputs([self._output(*entry) for entry in list(self._running.items())]))
                time.sleep(max(0.0, due - time.monotonic()))

    def _output(self, request_id: str, left: int) -> SequenceOutput:
        token = self._tokens[left]
        if left > 1:
            self._running[request_id] = left - 1
            return SequenceOutput(request_id=request_id, token_ids=[token])
        del self._running[request_id]
        return SequenceOutput(request_id=request_id, token_ids=[token], finish_reason="length")

    def _say_stats(self) -> None:
        if time.monotonic() >= self._stats_due:
            self._socket.send(EngineStats(num_running=len(self._running)))
            self._stats_due = time.monotonic() + STATS_SECONDS


def _text_tokens() -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    return ids


def _info() -> ModelInfo:
    return ModelInfo(
        model_name="instant",
        architecture="Instant",
        dtype="float32",
        device="cpu",
        vocab_size=1 << 16,
        max_model_len=4096,
        eos_token_ids=[],
        num_kv_pages=1 << 16,
        page_size=16,
        max_running=256,
        max_loras=8,
        max_adapter_rank=64,
        tokenizer=(DEMO_MODEL / "tokenizer.json").read_text(),
        chat_template=(DEMO_MODEL / "chat_template.jinja").read_text(),
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        pid=0,
    )


def serve(port: int, state: Path, step_ms: float, api_workers: int = 1) -> int:
    from peftserve.server.api import serve as api

    def command(door: int, config: EngineConfig) -> list[str]:
        return [sys.executable, __file__, "engine", str(door), encode_config(config)]

    config = ServerConfig(
        EngineConfig(model=str(step_ms), log_level="warning"),
        state,
        port=port,
        api_workers=api_workers,
        served_model_name="instant",
    )
    return api.run(config, command)


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        engine(*sys.argv[2:])
    else:
        sys.exit(serve(int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]), *map(int, sys.argv[5:])))
