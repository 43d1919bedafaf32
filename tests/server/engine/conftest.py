"""Engines in this process, over a tiny Llama, and what to do with them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, Pooling, SamplingParams, SequenceOutput, WeightedAdapter

MOST_STEPS = 5000


@dataclass
class Answer:
    """All outputs of one request, put together."""

    outputs: list[SequenceOutput] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def logprobs(self) -> list[Any]:
        return [report for output in self.outputs for report in output.logprobs or []]

    @property
    def last(self) -> SequenceOutput:
        return self.outputs[-1]


@dataclass
class Bench:
    """An engine, with its books checked after every step."""

    engine: Engine

    def add(
        self,
        request_id: str,
        prompt: list[int],
        adapters: Any = (),
        salt: str = "",
        pooling: Pooling | None = None,
        tenant: str = "",
        queue_timeout: float | None = None,
        **sampling: Any,
    ) -> None:
        """adapters: digests, or (digest, weight) pairs. Greedy unless a temperature is given."""
        parts = [WeightedAdapter(*([part] if isinstance(part, str) else part)) for part in adapters]
        params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **sampling})
        self.engine.add_request(
            AddRequest(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling=params,
                adapters=parts,
                salt=salt,
                pooling=pooling,
                tenant=tenant,
                queue_timeout=queue_timeout,
            )
        )

    def step(self) -> list[SequenceOutput]:
        outputs = self.engine.step()
        self.engine.check_integrity()
        return outputs

    def run(self, answers: dict[str, Answer] | None = None) -> dict[str, Answer]:
        """Until all is done; with the outputs of earlier steps, if there are any."""
        answers = {} if answers is None else answers
        for _ in range(MOST_STEPS):
            if not self.engine.has_work():
                return answers
            for output in self.step():
                answers.setdefault(output.request_id, Answer()).outputs.append(output)
        raise AssertionError(f"work is left: {self.engine.stats()}")

    def ask(self, prompt: list[int], adapters: Any = (), **options: Any) -> Answer:
        """The answer to one request by itself."""
        self.add("one", prompt, adapters, **options)
        return self.run()["one"]

    def checksum(self) -> str:
        """Of every parameter and buffer of the base."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.engine._model.state_dict(keep_vars=True).items()):
            digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def assert_idle(self) -> None:
        stats = self.engine.stats()
        assert (stats.num_running, stats.num_waiting, stats.kv_pages_used) == (0, 0, 0)
        assert not self.engine.has_work()
        self.engine.check_integrity()


@pytest.fixture(scope="session")
def tiny_llama(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = oracle.tiny_model("llama", 0, tmp_path_factory.mktemp("llama"))
    return folder


@pytest.fixture(scope="session")
def adapters(oracle: ModuleType, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that PEFT made, by digests of their own choice."""
    folder = tmp_path_factory.mktemp("adapters")
    targets = {"a": ["q_proj", "v_proj"], "b": ["gate_proj", "down_proj"], "c": "all-linear"}
    return {
        digest: oracle.random_adapter(tiny_llama, folder / digest, seed, r=4 * seed, target_modules=targets[digest])
        for seed, digest in enumerate(targets, 1)
    }


@pytest.fixture(scope="session")
def peft(oracle: ModuleType, tiny_llama: Path) -> Any:
    """PEFT's own answers."""
    return oracle.PeftOracle(tiny_llama)


@pytest.fixture
def make_bench(tiny_llama: Path) -> Iterator[Callable[..., Bench]]:
    """Makes engines, and closes them in the end."""
    benches: list[Bench] = []

    def make(known: Iterable[tuple[str, Path]] = (), **options: Any) -> Bench:
        defaults = {"page_size": 4, "kv_cache_tokens": 1024, "max_batch_tokens": 64, "adapter_memory": 1 << 21}
        benches.append(
            Bench(Engine(EngineConfig(**{"model": str(tiny_llama), "device": "cpu", **defaults, **options})))
        )
        for digest, folder in known:
            benches[-1].engine.inspect_adapter(digest, folder)
        return benches[-1]

    yield make
    for bench in benches:
        bench.engine.close()
