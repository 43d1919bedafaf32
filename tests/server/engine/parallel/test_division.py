"""A base in two parts, each on a thread of its own: together they give the logits of the whole."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import cast

import pytest
import torch

from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.loading import forward_logits, load_model
from peftserve.server.engine.parallel.division import add_up, divide
from peftserve.server.engine.parallel.group import RankGroup

RANKS = 2
PATIENCE = 300.0
CPU = torch.device("cpu")


class Threads:
    """What the ranks of a group meet by, where they are threads."""

    def __init__(self) -> None:
        self.barrier = Barrier(RANKS, timeout=PATIENCE)
        self.brought: list[torch.Tensor] = [torch.empty(0)] * RANKS


class ThreadGroup:
    """One of the threads as a rank. sums: how often this one has added up."""

    size = RANKS

    def __init__(self, rank: int, threads: Threads) -> None:
        self.rank = rank
        self.sums = 0
        self._threads = threads

    def _all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._threads.brought[self.rank] = tensor.clone()
        self._threads.barrier.wait()
        brought = [*self._threads.brought]
        self._threads.barrier.wait()
        return brought

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sums += 1
        return torch.stack(self._all(tensor)).sum(0)

    def beside(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(tensor), -1)

    def of_first(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._all(tensor)[0]


def on_ranks(work: Callable[[ThreadGroup], torch.Tensor]) -> list[torch.Tensor]:
    threads = Threads()
    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(work, [ThreadGroup(rank, threads) for rank in range(RANKS)]))


def config_of(model: Path) -> EngineConfig:
    return EngineConfig(model=str(model), device="cpu", dtype="float32", tensor_parallel_size=RANKS)


@pytest.mark.parametrize("architecture", ["llama_biased", "qwen3", "gemma3", "phi3", "mixtral"])
def test_parts_together_are_the_whole(oracle: ModuleType, tmp_path: Path, architecture: str) -> None:
    config = config_of(oracle.tiny_model(architecture, 1, tmp_path))
    loaded = [load_model(config) for _ in range(RANKS)]
    whole, weights = loaded[0].trace, sum(p.numel() for p in loaded[0].model.parameters())
    twins = [p.clone() for p in loaded[0].twin.parameters()]

    def run(group: ThreadGroup) -> torch.Tensor:
        division = divide(loaded[group.rank], cast(RankGroup, group), CPU, 1 << 20)
        add_up(division, cast(RankGroup, group))
        division.loaded.attention.forget()
        with torch.inference_mode():
            logits = forward_logits(division.loaded.model, whole.token_ids)
        layers = len(division.loaded.model.get_decoder().layers)
        assert group.sums == 2 * layers + 1, "not one sum for each of attention, network and embedding"
        held = sum(p.numel() for p in division.loaded.model.parameters())
        assert held < 0.53 * weights, "a rank holds more than its part"  # norms and routers are whole
        return logits

    for logits in on_ranks(run):
        whole.check(logits, "ranks")
    assert all(torch.equal(*pair) for pair in zip(twins, loaded[0].twin.parameters(), strict=True))


def test_a_base_with_state_is_refused(oracle: ModuleType, tmp_path: Path) -> None:
    loaded = load_model(config_of(oracle.tiny_model("qwen3_next", 1, tmp_path)))
    with pytest.raises(UnservableModel, match="keeps state beside the KV cache"):
        divide(loaded, cast(RankGroup, ThreadGroup(0, Threads())), CPU, 1 << 20)
