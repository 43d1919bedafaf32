"""peftserve: one frozen base model in memory, every PEFT adapter served on it in the same batch.

    LLM                             text in, text out, in this process
    Engine, EngineConfig            the step loop that takes tokens, and its settings
    SamplingParams                  how a sequence is sampled
    Completion                      what `LLM` answers

All of these are imported on first use: `import peftserve` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .server.config import EngineConfig
    from .server.engine import Engine
    from .server.offline import LLM, Completion
    from .server.wire.messages import SamplingParams

    __version__: str

__all__ = ["LLM", "Completion", "Engine", "EngineConfig", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "server.offline",
    "Completion": "server.offline",
    "Engine": "server.engine",
    "EngineConfig": "server.config",
    "SamplingParams": "server.wire.messages",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("peftserve")
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
