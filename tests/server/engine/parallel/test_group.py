"""A group of one rank: what each call returns, and that nothing is asked for tensors without elements."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.parallel.group import RankGroup, device_of_rank
from peftserve.server.engine.parallel.place import Place

CPU = torch.device("cpu")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[RankGroup]:
    made = RankGroup(Place(0, 1, tmp_path / "meeting"), CPU)
    yield made
    made.leave()


@pytest.mark.parametrize("rows", [0, 3])
def test_one_rank_gets_what_it_brings(group: RankGroup, rows: int) -> None:
    tensor = torch.randn(8, rows).T
    assert torch.equal(group.sum_(tensor.clone()), tensor)
    assert torch.equal(group.beside(tensor), tensor)
    assert torch.equal(group.of_first(tensor), tensor)
    assert group.least(7) == 7


def test_ranks_need_as_many_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of_rank(CPU, Place(1, 2, tmp_path)) == CPU
    with pytest.raises(UnservableModel, match="--tensor-parallel-size 2 needs as many GPUs, and torch sees 1"):
        device_of_rank(torch.device("cuda", 0), Place(0, 2, tmp_path))
