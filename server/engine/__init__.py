"""The model, its KV cache, its adapters and the step loop. Knows tokens and digests; no HTTP, names or text.

`Engine` is imported on first use, so that reading a submodule does not load torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from .engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
