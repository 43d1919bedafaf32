"""The engine in the caller's own process: text in, text out, without a server.

`LLM` and `Completion` are imported on first use, so that `import peftserve` loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .completion import Completion
    from .llm import LLM

__all__ = ["LLM", "Completion"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from .llm import LLM

        return LLM
    if name == "Completion":
        from .completion import Completion

        return Completion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
