"""Several adapters of each method whose primitives run as one call: in one batch, each gets PEFT's tokens."""

import hashlib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peftserve.kernels.ops.planner import CallPlanner
from peftserve.kernels.ops.site_plan import Batch
from peftserve.kernels.ops.triton.launches import Launch
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

pytestmark = pytest.mark.slow

MAX_TOKENS = 3
METHODS = {  # which primitives each comes to
    "oft": "input_rotation",
    "oft-shared": "input_rotation",
    "boft": "input_rotation",
    "road-2": "pair_rotation",
    "shira": "sparse",
    "lokr": "kronecker",
    "vera": "shared_low_rank",
    "fourierft": "spectral",
    "c3a": "circulant",
    "randlora": "shared_bases",
}
KERNELS = {"oft": "input_rotation", "road-2": "pair_rotation", "shira": "sparse", "lokr": "kronecker"}
FEW = ["q_proj", "down_proj"]  # modules, where kernels are interpreted
SEEDS = range(3)
PROMPTS = [[7, 81, 40, 41, 9, 210], [5, 6], [99, 8, 7, 6, 5, 4, 3, 200, 201, 17], [31, 32, 33, 34]]
OWNERS = [0, 1, 2, 0]  # the adapter of each prompt: one has two


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often operators for several adapters ran, by kind."""
    counts: Counter[str] = Counter()
    for step in (Batch, Launch):
        add = step.add_

        def counted(self: Any, site: Any, add: Any = add) -> None:
            counts[self.kind if isinstance(self, Batch) else f"launched {self.op.kind}"] += 1
            add(self, site)

        monkeypatch.setattr(step, "add_", counted)
    return counts


def test_many_of_a_method_in_one_batch(oracle: ModuleType, ran: Counter[str], device: str, tmp_path: Path) -> None:
    model = oracle.tiny_model("llama_biased", 3, tmp_path / "model")
    engine = make_engine(model, device)
    try:
        for method, kind in METHODS.items():
            ran.clear()
            check(engine, oracle, model, tmp_path, method)
            launched = device == "cuda" and kind in KERNELS.values()
            assert ran[f"launched {kind}" if launched else kind] > 0, f"{method}: {ran}"
    finally:
        engine.close()


def test_one_launch_a_module_where_there_are_kernels(
    oracle: ModuleType, ran: Counter[str], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every step, the one of the prompts too, whatever adapters are in it. An adapter that is still being loaded
    when the others begin makes it a step more.
    """
    model = oracle.tiny_model("llama_biased", 3, tmp_path / "model")
    engine = make_engine(model, device)
    engine.adapters.attachments.side._planner = CallPlanner(kernels=True)
    layers = oracle.plain_model(model).config.num_hidden_layers
    steps, run = list[Any](), engine._runner.run
    monkeypatch.setattr(engine._runner, "run", lambda *args, **more: steps.append(args) or run(*args, **more))
    try:
        for method, kind in KERNELS.items():
            ran.clear()
            steps.clear()
            check(engine, oracle, model, tmp_path, method, FEW, tokens=2)
            assert len(steps) >= 2
            assert ran == {f"launched {kind}": len(steps) * len(FEW) * layers}, method
    finally:
        engine.close()


def make_engine(model: Path, device: str) -> Engine:
    return Engine(EngineConfig(model=str(model), device=device, dtype="float32", max_loras=16, prefix_caching=False))


def check(
    engine: Engine,
    oracle: ModuleType,
    model: Path,
    folder: Path,
    method: str,
    modules: list[str] | None = None,
    tokens: int = MAX_TOKENS,
) -> None:
    """Serve three adapters of a method in one batch and compare with PEFT.

    modules: what the adapters target; without them what the catalogue says.
    """
    entry = oracle.CATALOG[method]
    config = entry.make(oracle.kind_of("llama"))
    config.target_modules = modules or config.target_modules
    digests, peft_models = [], []
    for seed in SEEDS:
        made = oracle.method_adapter(model, folder / f"{method}-{seed}", config, seed, randomize=entry.randomize)
        digests.append(hashlib.sha256(made.name.encode()).hexdigest())
        engine.inspect_adapter(digests[-1], made)
        peft_models.append(oracle.peft_model(model, made, "cpu"))
    found: dict[str, list[int]] = {}
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    for i, (prompt, owner) in enumerate(zip(PROMPTS, OWNERS, strict=True)):
        found[str(i)] = []
        part = WeightedAdapter(digests[owner])
        engine.add_request(AddRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling, adapters=[part]))
    while engine.has_work():
        for output in engine.step():
            assert not output.error
            found[output.request_id] += output.token_ids
    for i, (prompt, owner) in enumerate(zip(PROMPTS, OWNERS, strict=True)):
        wanted = oracle.peft_generate(peft_models[owner], prompt, tokens)
        sure = next((n for n, margin in enumerate(wanted.margins) if margin < 1e-4), tokens)
        assert found[str(i)][:sure] == wanted.token_ids[:sure], (method, prompt)
    for digest in digests:
        engine.release_adapter(digest)
