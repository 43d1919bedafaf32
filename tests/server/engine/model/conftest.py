"""A model that is nothing but one layer of attention, tiny real ones, and sequences on pages of one's choice."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.kernels.attention.layout import AttentionLayer
from peftserve.kernels.attention.torch.backend import TorchAttention
from peftserve.kernels.bypass.layout import Segment
from peftserve.kernels.device.step_memory import StepMemory
from peftserve.server.engine.model.attention import PagedAttention
from peftserve.server.engine.model.inputs import InputMemory
from peftserve.server.engine.model.kv_cache import KVCache
from peftserve.server.engine.model.runner import ModelRunner
from peftserve.server.engine.scheduling.sequence import Sequence
from peftserve.server.wire.messages import SamplingParams

VOCAB = 50
VALUE_DIM = 6
MOST_ROWS = 64


class ToyModel(nn.Module):
    """logits_to_keep picks rows of the attention's output, (tokens, heads · value dim).

    Queries, keys and values are drawn for each pair of token and position.
    """

    def __init__(self, heads: int = 4, kv_heads: int = 2, dim: int = 8, positions: int = 80) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.config = SimpleNamespace()
        generator = torch.Generator().manual_seed(0)
        self.q, self.k, self.v = (
            torch.randn(VOCAB, positions, count, width, generator=generator)
            for count, width in ((heads, dim), (kv_heads, dim), (kv_heads, VALUE_DIM))
        )
        self.attention = PagedAttention()
        self.layer = nn.Module()
        self.layer.layer_idx = 0
        self.options: dict[str, Any] = {}

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool, logits_to_keep: torch.Tensor | int
    ) -> SimpleNamespace:
        heads = [table[input_ids[0], position_ids[0]].transpose(0, 1)[None] for table in (self.q, self.k, self.v)]
        out, _ = self.attention(self.layer, *heads, None, **self.options)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return SimpleNamespace(logits=out.flatten(2)[:, kept])

    def connected(self, cache: KVCache, hooks: Any, attachments: Any) -> ModelRunner:
        """A runner on this model's attention, as its options are now."""
        ids = torch.zeros(1, 1, dtype=torch.int64)
        self(ids, ids, False, 0)
        backend = TorchAttention(
            [*self.attention.layers.values()], cache.page_size, torch.float32, self.device, 1 << 20
        )
        inputs = InputMemory(StepMemory(self.device), MOST_ROWS, MOST_ROWS)
        return ModelRunner(self, self.attention, backend, cache, hooks, attachments, inputs)

    def expected(self, tokens: list[int]) -> torch.Tensor:
        """(tokens, heads · value dim) by the textbook, in float64, one query at a time."""
        ids, positions = torch.tensor(tokens), torch.arange(len(tokens))
        q, k, v = (table[ids, positions].double() for table in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        sinks = self.options.get("s_aux")
        window, softcap = self.options.get("sliding_window"), self.options.get("softcap")
        rows = []
        for i in range(len(tokens)):
            first = 0 if window is None else max(0, i - int(window) + 1)
            scores = torch.einsum("hd,khd->hk", q[i], k[first : i + 1]) * (
                self.options.get("scaling") or k.shape[-1] ** -0.5
            )
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None].double()], -1)
            weights = scores.softmax(-1)[:, : i + 1 - first]
            rows.append(torch.einsum("hk,khd->hd", weights, v[first : i + 1]).flatten())
        return torch.stack(rows)


class NoBackend:
    """Notes the segments of each step."""

    def __init__(self) -> None:
        self.begun: list[tuple[list[Segment], list[Segment]]] = []

    def begin(self, tokens: list[Segment], logits: list[Segment], *, capacity: int | None = None) -> bool:
        self.begun.append((tokens, logits))
        return True

    def side_attention(self, tokens: list[Segment]) -> list[Any]:
        return []


class NoHooks:
    active = False

    def begin(self, active: bool) -> None:
        self.active = active

    def end(self) -> None:
        pass


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    def layer(heads: int, kv_heads: int) -> AttentionLayer:
        return AttentionLayer(heads, kv_heads, 8, VALUE_DIM, 1.0)

    parts = {"Model": ToyModel, "NoBackend": NoBackend, "NoHooks": NoHooks, "layer": layer, "MOST_ROWS": MOST_ROWS}
    return SimpleNamespace(**parts, VOCAB=VOCAB, VALUE_DIM=VALUE_DIM)


@pytest.fixture(scope="session")
def make_sequence() -> Callable[..., Sequence]:
    def make(tokens: list[int], pages: list[int], **sampling: object) -> Sequence:
        params = SamplingParams(**sampling)  # type: ignore[arg-type]
        sequence = Sequence("id", tokens, params, adapters=(), salt="", seed=0, eos_token_ids=frozenset())
        sequence.pages = pages
        return sequence

    return make


@pytest.fixture
def tiny(oracle: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Writes one of the oracle's tiny models, with changes to its configuration."""

    def make(architecture: str = "llama", **overrides: Any) -> Path:
        folder: Path = oracle.tiny_model(architecture, 0, tmp_path / "model", **overrides)
        return folder

    return make
