"""An adapter that is pushed again and again under load, as a trainer does: nothing grows with its versions."""

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftserve.adapters.files import CONFIG, WEIGHTS, content_digest

MakeBench = Callable[..., Any]
VERSIONS = 40
PROMPT = [7, 250, 31, 90, 44, 12, 13]


class Trainer:
    """Pushes versions of one adapter, releases the one before, and asks for answers of each while that goes on."""

    def __init__(self, bench: Any, checkpoint: Path, store: Path) -> None:
        self.bench, self.checkpoint, self.store = bench, checkpoint, store
        self.config = json.loads((checkpoint / CONFIG).read_text())
        self.digest: str | None = None
        self.pushed = 0
        self.ended: dict[str, int] = {}  # tokens of each request

    def push(self) -> None:
        before, self.digest = self.digest, self._stored()
        engine = self.bench.engine
        engine.inspect_adapter(self.digest, self.store / self.digest)
        self.bench.add(f"adapted {self.pushed}", PROMPT, [self.digest], max_tokens=4)
        self.bench.add(f"base {self.pushed}", [*PROMPT[:4], self.pushed % 200], max_tokens=7)
        self.pushed += 1
        release = engine.start_release(before) if before else None
        for _ in range(3):
            self.step()
        while release is not None and not release.done():
            self.step()
        if before:
            shutil.rmtree(self.store / before)

    def step(self) -> None:
        for output in self.bench.engine.step():
            assert output.error is None
            self.ended[output.request_id] = self.ended.get(output.request_id, 0) + len(output.token_ids)

    def settle(self) -> None:
        while self.bench.engine.has_work() or self.bench.engine.adapters.is_busy():
            self.step()
        assert {tokens for name, tokens in self.ended.items() if name.startswith("adapted")} == {4}
        assert {tokens for name, tokens in self.ended.items() if name.startswith("base")} == {7}
        self.ended.clear()

    def _stored(self) -> str:
        """Put the next version into the store, which has other bytes in its configuration."""
        staged = self.store / "staged"
        staged.mkdir()
        os.link(self.checkpoint / WEIGHTS, staged / WEIGHTS)
        (staged / CONFIG).write_text(json.dumps({**self.config, "revision": f"step {self.pushed}"}))
        digest = content_digest(staged)
        staged.rename(self.store / digest)
        return digest


def census() -> int:
    """Return the number of objects that Python's collector knows, with what is in the containers among them."""
    gc.collect()
    objects = gc.get_objects()
    return len(objects) + sum(len(one) for one in objects if type(one) in (dict, list, set))


@pytest.mark.slow
@pytest.mark.parametrize("spills", [False, True])
def test_nothing_grows_with_the_versions_that_were_pushed(
    make_bench: MakeBench, adapters: dict[str, Path], tmp_path: Path, spills: bool
) -> None:
    store = tmp_path / "state" / "adapters"
    store.mkdir(parents=True)
    bench = make_bench(store=store, max_loras=3, host_adapter_memory=1 if spills else 1 << 24)
    trainer = Trainer(bench, adapters["c"], store)
    counts, memory = [], []
    for _ in range(3):
        for _ in range(VERSIONS):
            trainer.push()
        trainer.settle()
        bench.assert_idle()
        stats = bench.engine.stats()
        memory.append((stats.device_adapter_bytes, stats.host_adapter_bytes, len(stats.device_adapters)))
        assert stats.host_adapters == stats.device_adapters == [trainer.digest]
        counts.append(census())
    assert memory[1] == memory[2]
    assert counts[2] - counts[1] < VERSIONS, "less than one object a version"
    assert len([*store.iterdir()]) == 1
    assert len([*(store.parent / "compiled").glob("*")]) <= 1
