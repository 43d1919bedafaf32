from typing import Any

import torch


def test_rows_are_sorted_into_blocks(peers: Any) -> None:
    """Ids 1, nobody's, 0, 1, 1 in blocks of two: nobody's block, one of id 0, two of id 1."""
    ids = torch.tensor([1, -1, 0, 1, 1], dtype=torch.int32)
    rows, blocks, padded = torch.zeros(12, dtype=torch.int32), torch.zeros(6, dtype=torch.int32), torch.zeros(1)
    peers.module("sglang_routes").align(ids, 3, 2, rows, blocks, padded, None, True)
    assert rows.tolist() == [1, 5, 2, 5, 0, 3, 4, 5, 5, 5, 5, 5]
    assert blocks.tolist() == [-1, 0, 1, 1, -1, -1]
    assert padded.item() == 8
