"""A compiled piece is for any number of rows, keeps its outputs' strides, and leaves the piece as it was."""

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.cutting import Piece, cut
from peftserve.server.engine.model.inductor import compile_piece
from peftserve.server.engine.model.tracing import trace_model


def rotated(ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Of heads that lie behind one another in each row."""
    x = ids[:, None].float() * torch.arange(1.0, 13.0)
    heads = x.view(ids.shape[0], 3, 4).transpose(0, 1)
    turned = torch.cat([-heads[..., 2:], heads[..., :2]], -1)
    return heads * positions.cos()[:, None] + turned * positions.sin()[:, None]


@pytest.fixture(scope="module")
def piece() -> Piece:
    traced = trace_model(nn.Module(), rotated, torch.device("cpu"))
    (first, *_) = [p for p in cut(traced.graph, lambda node: False) if isinstance(p, Piece) and not p.only_views]
    assert not traced.shapes.guards
    return first


def test_any_number_of_rows_and_the_strides_of_the_model(piece: Piece) -> None:
    before = str(piece.graph)
    run = compile_piece(piece)
    assert str(piece.graph) == before
    for rows in (1, 2, 5, 61, 300):
        ids = torch.arange(rows)
        known = {"ids_1": ids, "positions_1": ids * 2, "aten.sym_size.int": rows}
        given = [known[str(node.target)] for node in piece.inputs]
        (found,) = run(given)
        wanted = rotated(ids, ids * 2, ids)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert rows == 1 or found.stride() == wanted.stride()
