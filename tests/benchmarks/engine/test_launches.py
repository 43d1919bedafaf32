"""Launches of a decode step are those of its program's parts, and pieces between two products are one each."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.server.engine.model import inductor
from peftserve.server.engine.model.cutting import Piece, cut
from peftserve.server.engine.model.tracing import trace_model

SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "pad_token_id": 0}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


@pytest.fixture
def launches(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("engine.launches")


@pytest.fixture
def gpu_code(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("engine.gpu_code")


def piece_of(forward: Callable[..., torch.Tensor], last: Any = None) -> Piece:
    """The only one that computes, but for an operator at its end; forward: of ids, positions and rows."""
    traced = trace_model(nn.Module(), forward, torch.device("cpu"))
    parts = cut(traced.graph, lambda node: node.target is last)
    (piece,) = [part for part in parts if isinstance(part, Piece) and not part.only_views]
    return piece


def pointwise(ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (ids * positions).float().cos() + 1


def two_sums(ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Over all rows, the second of what needs the first."""
    x = ids.float()[:, None] * positions[None]
    return x.softmax(0).cos().sum(1)


def chosen(ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`topk` is an operator of torch's own on a GPU too."""
    return (ids[:, None] * torch.arange(4)).float().cos().topk(2).values


@pytest.mark.parametrize(("forward", "fewest", "most"), [(pointwise, 1, 1), (two_sums, 2, 4), (chosen, 2, 2)])
def test_kernels_and_operators_are_counted(
    gpu_code: ModuleType, forward: Callable[..., torch.Tensor], fewest: int, most: int
) -> None:
    code = gpu_code.write(piece_of(forward))
    assert "type='cuda'" in code
    assert fewest <= gpu_code.num_launches(code) <= most


def test_what_is_independent_is_one_launch(gpu_code: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_sizes(ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([(ids.float()[:, None] * torch.arange(4)).cos(), positions.float().sin()[:, None]], 1)

    piece = piece_of(two_sizes, torch.ops.aten.cat.default)
    assert gpu_code.num_launches(gpu_code.write(piece)) == 1
    monkeypatch.setitem(inductor._SETTINGS, "combo_kernels", False)
    assert gpu_code.num_launches(gpu_code.write(piece)) == 2


def test_any_step_fits_the_numbers_that_a_gpu_counts_elements_with(gpu_code: ModuleType) -> None:
    """Of 32 bits, which inductor assumes to be enough where nobody says how many rows there may be."""

    def wide(ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return (ids[:, None].float() * torch.arange(28672)).cos()

    for most_rows, fits in ((1 << 13, True), (1 << 17, False)):
        traced = trace_model(nn.Module(), wide, torch.device("cpu"), most_rows)
        (piece,) = [part for part in cut(traced.graph, lambda node: False) if isinstance(part, Piece)]
        gpu_code.write(piece)
        assert bool(traced.shapes.guards) != fits
        traced.shapes.guards.clear()


def test_nothing_of_the_pretended_device_stays(gpu_code: ModuleType) -> None:
    before = torch.cuda.device_count(), torch.cuda.is_available()
    gpu_code.write(piece_of(pointwise))
    assert (torch.cuda.device_count(), torch.cuda.is_available()) == before


def test_a_layer_of_llama(launches: ModuleType) -> None:
    """Products of q, k and v, of o, of gate and up, and of down; two norms with their residuals, q and k rotated by one
    launch, and SiLU times up.
    """
    found = launches.launches(launches.transformers.LlamaConfig(**SMALL))
    assert (found.layer["products"], found.layer["attention"], found.layer["pieces"]) == (4, 1, 4)
    assert found.of_layer == 9
    assert found.layer["bypasses"] == 8
    assert found.num_layers == 3
    assert found.step["products"] == 3 * 4 + 2, "the embedding and the head as well"
    assert found.besides == found.step["pieces"] - 3 * 4 + 2
    assert "9" in launches.line("Llama", found)


def test_experts_are_the_operators_that_transformers_runs(launches: ModuleType) -> None:
    found = launches.launches(launches.transformers.MixtralConfig(**SMALL, num_local_experts=4))
    assert found.layer["experts"] > 1
    assert found.layer["products"] == 3, "one of them the router's"
