"""The whole base in files: what was in memory is mapped, with the same numbers, and the file has no name any more."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from peftserve.server.engine.memory import mapped_ranges
from peftserve.server.engine.parallel.group import RankGroup
from peftserve.server.engine.parallel.whole import CONVERTED, SMALL, keep_in_files


class OneRank:
    rank = 0

    def least(self, value: int) -> int:
        return value


def is_mapped(tensor: torch.Tensor) -> bool:
    return any(start <= tensor.data_ptr() < end for start, end in mapped_ranges(CONVERTED))


def test_large_weights_are_mapped_from_a_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(257, 300), nn.Linear(300, 130, dtype=torch.bfloat16), nn.LayerNorm(130))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    keep_in_files(model, cast(RankGroup, OneRank()), tmp_path)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert [p.nbytes >= SMALL for p in model.parameters()] == [is_mapped(p) for p in model.parameters()]
    assert not list(tmp_path.iterdir())


def test_without_room_on_the_disk_weights_stay_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(257, 300)
    keep_in_files(model, cast(RankGroup, OneRank()), tmp_path / "missing")
    assert not is_mapped(model.weight)
    assert "in memory" in caplog.text
