"""The start of the engine's process: its arguments and environment, and its end when the parent is gone.

The command line is `python -m peftserve.server.engine DOOR CONFIG`: the descriptor of a socket through which
API processes' connections come, and an `EngineConfig` in JSON. The parent holds the other end of the child's standard
input and never writes to it.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..config import EngineConfig, ServerConfig

ENGINE_MODULE = "peftserve.server.engine"
PR_SET_PDEATHSIG = 1  # prctl(2)

Config = TypeVar("Config", EngineConfig, ServerConfig)


def engine_command(door: int, config: EngineConfig, *, module: str = ENGINE_MODULE) -> list[str]:
    """Return the argument vector of the engine's process."""
    return [sys.executable, "-m", module, str(door), encode_config(config)]


def engine_environment() -> dict[str, str]:
    """Return the environment of the engine's process.

    Threads that wait for each other in a product go to sleep after a tenth of libgomp's own time. Those that spin take
    the cores from whatever else runs on the machine, the API process first, and then wait for the very threads that
    they keep from running. After a hundredth they would sleep between the products of one step, which then takes 1.7
    times as long on a quiet machine.

    glibc keeps what a step frees for the next one. It would give the large tensors of a prefill back to the system at
    once, and get them anew, page by page: a seventh of a prefill's time.
    """
    kept = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    return {"GOMP_SPINCOUNT": "30000", **kept, **os.environ}


def parse_engine_arguments(arguments: Sequence[str]) -> tuple[int, EngineConfig]:
    """Return the door and the configuration of `sys.argv[1:]`. Raises ValueError for other arguments."""
    door, config = arguments
    return int(door), decode_config(config, EngineConfig)


def encode_config(config: EngineConfig | ServerConfig) -> str:
    return msgspec.json.encode(config, enc_hook=str).decode()


def decode_config(text: str, kind: type[Config]) -> Config:
    """Return the configuration. Raises ValueError (msgspec's ValidationError is one) for any other text."""
    return msgspec.json.decode(text, type=kind, dec_hook=_make_path)


def exit_with_parent(descriptor: int = 0) -> None:
    """End this process as soon as the other end of `descriptor` is closed, whatever it is doing then.

    A thread of its own, so that a parent that dies while the model loads or a step runs takes the engine with it. Where
    this process is stopped, so is the thread: there Linux ends it, with the thread that has started it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="exit-with-parent", daemon=True).start()


def _make_path(kind: type[Any], value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"no decoding for {kind}")
