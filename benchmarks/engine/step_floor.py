"""The least time of a whole step: for each product the larger of its bytes and its arithmetic, one after the other.

Counted is what no implementation avoids: every weight once, the head only for the rows whose logits are wanted; keys
and values once for all rows of their sequence; each adapter's factors once. Activations are not counted: most stay in
the cache, and those of a decode step are a hundredth of its weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig

from ..kernels.roofline import Roofline
from ..models.llama import RANK, linears_of

Sequences = Sequence[tuple[int, int]]  # (new tokens, tokens of context before them) of each
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


@dataclass(frozen=True)
class Floor:
    """The least time of a step, in seconds by kind of work."""

    products: float
    attention: float
    adapters: float

    @property
    def whole(self) -> float:
        return self.products + self.attention + self.adapters


@dataclass(frozen=True)
class StepFloor:
    """The floor of a model's steps on one machine."""

    config: LlamaConfig
    dtype: torch.dtype
    roofline: Roofline

    def __call__(self, sequences: Sequences, adapters: int, logits: int | None = None) -> Floor:
        """Return the floor of a step.

        adapters: that share its rows evenly. logits: rows of the head (default: one a sequence).
        """
        rows = sum(new for new, _ in sequences)
        layers = self.config.num_hidden_layers
        head = self._product(self.config.hidden_size, self.config.vocab_size, logits or len(sequences))
        linears = linears_of(self.config)
        widths = [(linears[group[0]][0], sum(linears[name][1] for name in group)) for group in GROUPS]
        products = sum(self._product(width, out, rows) for width, out in widths)
        bypasses = sum(self._bypass([linears[name] for name in group], rows, adapters) for group in GROUPS if adapters)
        return Floor(layers * products + head, layers * self._attention(sequences), layers * bypasses)

    def _product(self, width: int, out: int, rows: int) -> float:
        return self._most(width * out, 2 * rows * width * out)

    def _bypass(self, linears: Sequence[tuple[int, int]], rows: int, adapters: int) -> float:
        """Return the seconds of the bypasses of linears with one input, each with its own A and B."""
        elements = RANK * sum(width + out for width, out in linears)
        return self._most(adapters * elements, 2 * rows * elements)

    def _attention(self, sequences: Sequences) -> float:
        config = self.config
        head = config.hidden_size // config.num_attention_heads
        seen = sum(context + new for new, context in sequences)
        pairs = sum(new * context + new * (new + 1) // 2 for new, context in sequences)
        return self._most(2 * seen * config.num_key_value_heads * head, 4 * pairs * config.num_attention_heads * head)

    def _most(self, elements: int, flops: int) -> float:
        return max(elements * self.dtype.itemsize / self.roofline.bandwidth, flops / self.roofline.peak)
