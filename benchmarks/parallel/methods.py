"""Every method of the catalogue on bases that are divided among ranks, beside PEFT: nothing of speed.

    python -m benchmarks.parallel.methods --ranks 2 --models llama qwen3 gemma3 phi3 mixtral

Adapters of all methods are in one batch. Prints what was refused, with the reason, and what differs.
"""

import argparse
import hashlib
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from peftserve.adapters.errors import AdapterError
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

from .setting import oracle

PROMPTS = ([5, 9, 20, 33, 41, 7, 8, 60], [9, 9, 9, *[17, 200, 100] * 6, 7, 8, 99])
MAX_TOKENS = 4


@dataclass
class Sweep:
    """One base's requests: (name of the method or "", prompt, PEFT's tokens); and the methods that were refused."""

    requests: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["llama", "qwen3", "gemma3", "phi3", "mixtral"])
    parser.add_argument("--methods", nargs="+", help="of the catalogue; all of them without it")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kit = oracle()
    return max(_run(kit, architecture, options) for architecture in options.models)


def _run(kit: ModuleType, architecture: str, options: argparse.Namespace) -> int:
    """Serve one base. Returns 1 if any answer is not PEFT's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = kit.tiny_model(architecture, 3, folder / "base")
        engine = Engine(_config(model, options))
        try:
            sweep = _prepared(kit, engine, model, folder, options.methods or list(kit.CATALOG))
            wrong = _served(kit, engine, sweep)
        finally:
            engine.close()
    print(
        f"{architecture}, {options.ranks} ranks: {len(sweep.requests)} requests, {len(wrong)} not as PEFT", flush=True
    )
    for method, why in sweep.refused.items():
        print(f"  refused {method}: {why}")
    for line in wrong:
        print(f"  wrong {line}")
    return int(bool(wrong))


def _config(model: Path, options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        model=str(model),
        device=options.device,
        dtype="float32",
        tensor_parallel_size=options.ranks,
        num_threads=1,
        adapter_memory=64 << 20,
        kv_cache_tokens=2048,
        max_loras=200,
        max_batch_tokens=64,
    )


def _prepared(kit: ModuleType, engine: Engine, model: Path, folder: Path, methods: list[str]) -> Sweep:
    """Make an adapter of each method, let PEFT answer with it, and inspect it."""
    plain = kit.plain_model(model)
    kind, sweep = kit.kind_of(plain.config.model_type), Sweep()
    _ask(kit, sweep, "", plain, None)
    for name in methods:
        entry = kit.CATALOG[name]
        if (adapter := _adapter(kit, entry, kind, model, folder / name)) is None:
            continue
        try:
            engine.inspect_adapter(_digest(name), adapter)
        except AdapterError as error:
            sweep.refused[name] = error.message
            continue
        _ask(kit, sweep, name, kit.peft_model(model, adapter, "cpu"), entry.task)
    return sweep


def _adapter(kit: ModuleType, entry: Any, kind: Any, model: Path, folder: Path) -> Path | None:
    """Return an adapter; None where PEFT itself does not support the pair."""
    if (config := entry.make(kind)) is None:
        return None
    try:
        adapter: Path = kit.method_adapter(model, folder, config, randomize=entry.randomize)
    except Exception as error:
        if kit.is_fault(error):
            raise
        return None
    return adapter


def _ask(kit: ModuleType, sweep: Sweep, name: str, model: Any, task: int | None) -> None:
    for prompt in PROMPTS:
        sweep.requests.append((name, prompt, kit.peft_generate(model, prompt, MAX_TOKENS, task).token_ids))


def _served(kit: ModuleType, engine: Engine, sweep: Sweep) -> list[str]:
    """Run all requests in one go. Returns a line for each that is not as PEFT."""
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True)
    for number, (name, prompt, _) in enumerate(sweep.requests):
        task = kit.CATALOG[name].task if name else None
        own = {} if task is None else {"task": task}
        adapters = [WeightedAdapter(_digest(name), **own)] if name else []
        engine.add_request(
            AddRequest(request_id=str(number), prompt_token_ids=prompt, sampling=sampling, adapters=adapters)
        )
    got: dict[str, list[int]] = {}
    errors: dict[str, str] = {}
    while engine.has_work():
        for output in engine.step():
            got.setdefault(output.request_id, []).extend(output.token_ids)
            if output.error is not None:
                errors[output.request_id] = output.error
    pairs = ((str(number), name, wanted) for number, (name, _, wanted) in enumerate(sweep.requests))
    return [f"{name}: {got.get(n)} {errors.get(n, '')}, not {want}" for n, name, want in pairs if got.get(n) != want]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
