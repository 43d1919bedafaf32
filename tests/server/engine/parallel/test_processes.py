"""The processes of other ranks: their loss is noticed and named, and they end with the first."""

import os
import signal
from pathlib import Path

import pytest

from peftserve.server.config import EngineConfig
from peftserve.server.engine.parallel.processes import RankLost, RankProcesses, with_threads


def test_a_rank_that_ends_is_noticed_and_named(tmp_path: Path) -> None:
    ranks = RankProcesses(EngineConfig(model=str(tmp_path), tensor_parallel_size=2))
    try:
        ranks.check()
        os.kill(ranks.pids[0], signal.SIGKILL)
        with pytest.raises(RankLost, match=r"rank 1 of 2 \(process \d+\) was killed by SIGKILL"):
            ranks.wait_for_a_loss()
        with pytest.raises(RankLost, match="SIGKILL"):
            ranks.check()
    finally:
        ranks.close()
    assert not ranks.meeting.parent.exists()


def test_ranks_end_when_they_are_closed_before_they_have_met(tmp_path: Path) -> None:
    store = tmp_path / "state" / "adapters"
    ranks = RankProcesses(EngineConfig(model=str(tmp_path), tensor_parallel_size=3, store=store))
    assert ranks.meeting.parent == tmp_path / "state" / "ranks"
    pids = ranks.pids
    ranks.close(patience=0.0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_ranks_share_the_cores_unless_told_how_many_threads() -> None:
    own = with_threads(EngineConfig(model="m", tensor_parallel_size=2, num_threads=3))
    assert own.num_threads == 3
    assert (with_threads(EngineConfig(model="m", tensor_parallel_size=1 << 20)).num_threads) == 1
