"""The number of kernels that a decode step launches on a GPU, layer by layer, counted without one.

    python -m benchmarks.engine.launches

The compiled program is taken apart. A product is a launch; so are attention, which writes the step's keys and values
itself, and the bypass of a group of modules. For the pieces between them, the launches in what inductor writes for an
H100 are counted (`gpu_code.py`), and for experts the operators that transformers runs, each of which is one kernel or
more. `operators`: the operators of the pieces before compilation. `else`: launches before the first layer's attention
and after the last layer. Models have few layers and small widths, but for that of the norms.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig

from peftserve.kernels.bypass.triton.expand import MAX_SITES
from peftserve.kernels.integers import cdiv
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model.callouts import Call
from peftserve.server.engine.model.compiled import operations_of
from peftserve.server.engine.model.cutting import Operation, Piece, is_view
from peftserve.server.engine.model.inputs import StepInputs
from peftserve.server.engine.model.tracing import HINT_ROWS, TracedModel, trace_model
from peftserve.server.engine.model.widening import widen_inputs
from peftserve.server.engine.private.transformers_private import is_experts

from ..tables import Table
from .gpu_code import num_launches, write

WIDE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 4096,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "Llama": lambda: transformers.LlamaConfig(**WIDE),
    "Qwen3": lambda: transformers.Qwen3Config(**WIDE),
    "Gemma 2": lambda: transformers.Gemma2Config(**WIDE),
    "GPT-2": lambda: transformers.GPT2Config(vocab_size=64, n_positions=64, n_embd=1024, n_layer=4, n_head=8),
    "Mixtral": lambda: transformers.MixtralConfig(**WIDE, num_local_experts=4),
}
PARTS = ("products", "attention", "experts", "pieces", "bypasses", "operators")
FIGURES = Table(
    {"model": "<10", "products": "9", "attention": "10", "experts": "8", "pieces": "7"}
    | {"a layer": "8", "adapters": "9", "operators": "10", "else": "6"}
)


@dataclass(frozen=True)
class Launches:
    """Launches by PARTS, of one layer and of the whole step. bypasses: of a step with adapters on all modules."""

    layer: Counter[str]
    step: Counter[str]
    num_layers: int

    @property
    def of_layer(self) -> int:
        return sum(self.layer[part] for part in PARTS[:4])

    @property
    def besides(self) -> int:
        """Return the launches outside the layers."""
        return sum(self.step[part] for part in PARTS[:4]) - self.num_layers * self.of_layer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--wide-columns", type=int, default=0, help="of a prefill whose adapters are all in columns")
    options = parser.parse_args()
    print(FIGURES.heading())
    for name in options.models:
        print(line(name, launches(MODELS[name](), options.wide_columns)), flush=True)
    return 0


def line(name: str, found: Launches) -> str:
    layer = found.layer
    counts = (layer["products"], layer["attention"], layer["experts"], layer["pieces"])
    of_layer = found.of_layer
    return FIGURES.line(name, *counts, of_layer, of_layer + layer["bypasses"], layer["operators"], found.besides)


def launches(config: PretrainedConfig, wide_columns: int = 0) -> Launches:
    """Count the launches of a model.

    wide_columns: spare columns behind the weights, with which a group's bypass is one launch.
    """
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        options: dict[str, Any] = {"kv_cache_tokens": 64, "wide_columns": wide_columns}
        engine = Engine(EngineConfig(folder, device="cpu", dtype="bfloat16", **options))
    try:
        parts = [*_counted(engine._runner)]
    finally:
        engine.close()
    begins = [index for index, counts in enumerate(parts) if counts["attention"]]
    layer = sum(parts[begins[1] : begins[2]], Counter[str]())
    return Launches(layer, sum(parts, Counter[str]()), len(begins))


def _counted(runner: Any) -> Iterator[Counter[str]]:
    """Yield the launches of each part of the program, in its order."""
    traced = trace_model(runner._model, lambda *given: runner._forward(StepInputs(*given)), runner._model.device)
    widen_inputs(traced, runner._hooks.room_behind)
    of_piece = cache(lambda piece: Counter(pieces=num_launches(write(piece)), operators=_num_operators(piece)))
    same: dict[str, Piece] = {}
    for part in operations_of(traced):
        if isinstance(part, Piece):
            yield Counter() if part.only_views else of_piece(same.setdefault(part.key, part))
        else:
            yield _of_call(runner._hooks, traced, part)


def _num_operators(piece: Piece) -> int:
    """Count the operators that compute something when nothing is compiled. Decompositions have split some of them."""
    return sum(node.op == "call_function" and not is_view(node) for node in piece.graph.nodes)


def _of_call(hooks: Any, traced: TracedModel, part: Operation) -> Counter[str]:
    call = traced.calls.get(part)  # type: ignore[arg-type]
    if call is None:
        return Counter()  # the rows that are wanted: all, in a decode
    if isinstance(call.owner, str):
        group = hooks._groups[hooks._places[call.owner][0]]
        products = 1 if group.fused is not None else len(group.members)
        expands = cdiv(len(group.members), MAX_SITES)
        bypasses = 1 if hooks.room_behind(call.owner) else 1 + expands  # shrink, and expands
        return Counter(products=products, bypasses=bypasses)
    if is_experts(call.owner):
        return Counter(experts=_operators_of(call, part))
    assert hasattr(call.owner, "layer_idx"), "no layer of these models is left as it is"
    return Counter(attention=1)


class _Operators(TorchDispatchMode):
    """A counter of operators that do more than view a tensor in another way."""

    count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not operator.is_view
        return operator(*args, **(kwargs or {}))


def _operators_of(call: Call, part: Operation) -> int:
    assert isinstance(part, fx.Node)
    inputs = [_filled(node.meta["val"]) for node in part.all_input_nodes]
    with torch.no_grad(), _Operators() as operators:
        call.run(call.owner, *inputs)
    return operators.count


def _filled(like: torch.Tensor) -> torch.Tensor:
    """Return zeros of the size, which are valid indices too."""
    return torch.zeros([HINT_ROWS if isinstance(size, torch.SymInt) else size for size in like.shape], dtype=like.dtype)


if __name__ == "__main__":
    sys.exit(main())
