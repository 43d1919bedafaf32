"""What the kernels read of adapters, counted in the interpreter, and what the host prepares."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from peftserve.kernels.ops.experts.combinations import all_combinations
from peftserve.kernels.ops.experts.triton_backend import FEW_ROWS, Blocks, parts_of, triton_terms, units_of, warm_up

CPU = torch.device("cpu")


@pytest.fixture
def factors_read(monkeypatch: pytest.MonkeyPatch, moe: ModuleType) -> list[tuple[torch.Tensor, list[int]]]:
    """Add, to each memory in the list, the elements of it that kernels ask for."""
    watched: list[tuple[torch.Tensor, list[int]]] = []
    load = interpreter.InterpreterBuilder.create_masked_load

    def counting(self: Any, pointers: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        for memory, asked in watched:
            inside = wanted[(wanted >= memory.data_ptr()) & (wanted < memory.data_ptr() + memory.nbytes)]
            asked += ((inside - memory.data_ptr()) // memory.element_size()).tolist()
        return load(self, pointers, mask, *args, **kwargs)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", counting)
    return watched


@pytest.mark.parametrize("tokens", [1, 3], ids=["a token each", "three tokens each"])
def test_decode_reads_each_factor_once_for_each_adapter_and_expert(
    moe: ModuleType, factors_read: list[tuple[torch.Tensor, list[int]]], tokens: int
) -> None:
    case = moe.Case(4, torch.float16, widths={"up_proj": (96, 160)})
    ranks = {"a": 8, "b": 16, "c": 40, "d": 1}
    for name, rank in ranks.items():
        case.add(name, up_proj=rank)
    segments = case.segments([(name, 1.0, i * tokens, (i + 1) * tokens) for i, name in enumerate(ranks)])
    rows = tokens * len(ranks) + 2
    experts = case.routing_of(rows, 2)
    terms = triton_terms(all_combinations({"": segments}, rows), CPU)[""]
    routing = terms.route(experts, 4)
    x, y = case.randn(rows * 2, 96), case.randn(rows * 2, 160)
    factors_read.append((case.arena, []))
    terms.add_("up_proj", x, y, routing)
    asked = factors_read[0][1]
    met = {
        (segment.op.fields["a"].shape[1], e)
        for segment in segments
        for e in experts[segment.start : segment.end].unique().tolist()
    }
    assert len(asked) == len(set(asked)) == sum(rank * (96 + 160) for rank, _ in met)


def test_what_a_combination_consists_of(moe: ModuleType) -> None:
    case = moe.Case(2)
    case.add("a", up_proj=40)
    case.add("b", up_proj=8, down_proj=3)
    segments = case.segments([("a", 1.0, 0, 1), ("a", 0.5, 1, 2), ("b", 0.5, 1, 2)])
    found = units_of(all_combinations({"": segments}, 3)[""], FEW_ROWS)
    a, b = (case.ops[name][0].fields for name in "ab")
    offsets = [(one["a"].storage_offset(), one["b"].storage_offset()) for one in (a, b)]
    assert found["up_proj"].spans.tolist() == [[0, 0], [0, 3], [3, 4]]
    assert found["up_proj"].units.tolist() == [
        *([*offsets[0], 40, first, 0] for first in (0, 16, 32)),
        *([*offsets[0], 40, first, 0] for first in (0, 16, 32)),
        [*offsets[1], 8, 0, 1],
    ]
    assert (found["up_proj"].most, found["up_proj"].alignment) == (4, 8)
    assert (found["down_proj"].spans.tolist(), found["down_proj"].alignment) == ([[0, 0], [0, 0], [0, 1]], 1)


@pytest.mark.parametrize(
    ("units", "width", "parts"),
    [(1, 4096, 8), (128, 4096, 8), (300, 4096, 4), (5000, 4096, 1), (1, 60, 1), (128, 2048, 4)],
)
def test_features_are_split_until_the_device_is_full(units: int, width: int, parts: int) -> None:
    found, chunk = parts_of(FEW_ROWS, units, width, 132)
    assert found == parts
    assert chunk % FEW_ROWS.block_k == 0
    assert (found - 1) * chunk < width <= found * chunk


def test_large_tiles(moe: ModuleType) -> None:
    case = moe.Case(2)
    case.add("a", up_proj=20)
    segments = case.segments([("a", 1.0, 0, 50)])
    blocks = Blocks(block_m=64, block_k=32, block_n=64, stages=3, least_chunk=32)
    terms = triton_terms(all_combinations({"": segments}, 50), CPU, blocks)[""]
    moe.check(case, terms, segments, case.routing_of(50, 2), 2e-6)


def test_every_kernel_is_run_once_before_the_first_step() -> None:
    warm_up([("up_proj", 2, 16, 48), ("down_proj", 2, 48, 16)], torch.float32, CPU)
