"""An engine whose device does nothing, so that the host's work can be timed: `host_step.py` starts and asks it.

    python benchmarks/engine/host_subject.py BASE STORE MAX_RUNNING TEMPERATURE

All of the engine is the real one, with the Triton backends and the host side of graphs, except for what a device does:
the forward pass and a graph's replay return logits drawn at start, no kernel is launched, the cache has one page, and
pinned memory is ordinary memory. The widths by which work is cut are those of Llama-3.1-8B on an H100.

It answers each line of JSON with a line of JSON:
    {"start": 64, "adapters": 64, "context": 512}    start so many sequences and run until all of them decode
    {"steps": 100}                                   return ms of each stage: the first decile over so many steps,
                                                     since what neighbours on the same cores add is no cost of ours
    {"finish": 0}                                    end the sequences
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from random import Random
from statistics import quantiles
from types import SimpleNamespace
from typing import Any

import torch

from peftserve.kernels.attention.triton.backend import TritonAttention
from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine, assembly, completion, machine, staging
from peftserve.server.engine.adapters import service
from peftserve.server.engine.adapters.attachments import Attachments
from peftserve.server.engine.model.graphs import DecodeGraphs
from peftserve.server.engine.model.kv_cache import KVCache
from peftserve.server.engine.pipeline import Pipeline
from peftserve.server.engine.scheduling.scheduler import Scheduler
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

MULTIPROCESSORS = 132
WIDTH = 4096  # of the model that is stood for
HEAD_DIM = 128
STAGES: Mapping[str, tuple[type[Any], str]] = {
    "schedule": (Scheduler, "schedule"),
    "attention": (TritonAttention, "begin"),
    "bypass": (Attachments, "begin"),
    "graph": (DecodeGraphs, "run"),
    "launch": (Pipeline, "_launch"),
    "sample": (completion.PendingStep, "launched"),
    "collect": (Pipeline, "_collect"),
    "all": (Engine, "step"),
}


class Timers:
    """The time spent in each stage of the step. spent: seconds since the last `take`."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)
        for stage, (kind, name) in STAGES.items():
            setattr(kind, name, self._timed(stage, getattr(kind, name)))

    def _timed(self, stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                self.spent[stage] += time.perf_counter() - begun

        return timed

    def take(self) -> dict[str, float]:
        """Return what has been spent since the last call.

        inputs: the part of a launch that is none of its other stages.
        """
        spent, self.spent = self.spent, dict.fromkeys(STAGES, 0.0)
        nested = ("attention", "bypass", "graph", "sample")
        return {**spent, "inputs": spent["launch"] - sum(spent[stage] for stage in nested)}


class Recorder:
    """Records no operator: a replay leaves the output as it is."""

    def record(self, run: Callable[[], torch.Tensor]) -> Any:
        class Recording:
            output = run()

            def __call__(self) -> None:
                pass

        return Recording()


class OnePage(KVCache):
    """A cache that reports `num_pages` pages and has memory for one."""

    def __init__(self, layers: Any, num_pages: int, *rest: Any) -> None:
        super().__init__(layers, 1, *rest)
        self.num_pages = num_pages


def fake_device() -> None:
    """Replace what a device does, for all engines made from now on."""
    torch.set_num_threads(1)
    staging.is_host = lambda device: False
    staging._pinned = lambda size: torch.empty(size, dtype=torch.uint8)
    staging._event = lambda device: SimpleNamespace(synchronize=lambda: None)
    for check in ("check_paged_attention", "run_largest_step"):
        setattr(assembly, check, lambda *args: None)
    assembly.make_recorder = lambda device: Recorder()
    assembly.make_attention_backend = _attention
    assembly.KVCache = OnePage
    service.make_bypass_backend = _bypass
    TritonBypass.lead_in = lambda self: None
    machine.make_runner = partial(_make_runner, machine.make_runner)


def _attention(layers: Any, page_size: int, dtype: Any, device: Any, limits: Any, *args: Any) -> Any:
    """Make the Triton backend for an H100. args: the step's memory, and bytes to spare."""
    wide = [replace(layer, key_dim=HEAD_DIM, value_dim=HEAD_DIM) for layer in layers]
    programs = 4 * MULTIPROCESSORS
    return TritonAttention(wide, page_size, dtype, device, limits, num_programs=programs, memory=args[0])


def _bypass(arena: torch.Tensor, groups: Any, **limits: Any) -> TritonBypass:
    wide = [replace(group, in_features=group.in_features if group.gather else WIDTH) for group in groups]
    return TritonBypass(arena, wide, **limits)


def _make_runner(make: Callable[..., Any], config: EngineConfig, loaded: Any, *args: Any) -> Any:
    drawn = torch.randn(1, config.max_batch_tokens, loaded.trace.logits.shape[-1], dtype=loaded.dtype)

    def forward(*, input_ids: torch.Tensor, logits_to_keep: Any = 0, **_: Any) -> Any:
        rows = len(logits_to_keep) if isinstance(logits_to_keep, torch.Tensor) else input_ids.shape[1]
        return SimpleNamespace(logits=drawn[:, :rows])

    loaded.model.forward = forward
    return make(config, loaded, *args)


class MeasuredEngine:
    """The measured engine and its sequences."""

    def __init__(self, base: str, store: str, max_running: int, temperature: float) -> None:
        self._digests = sorted(path.name for path in Path(store).iterdir() if path.is_dir())
        self._timers = Timers()
        config = EngineConfig(model=base, store=Path(store), device="cpu", dtype="bfloat16", num_threads=1)
        limits = {"max_running": max_running, "max_loras": max(len(self._digests), 1), "kv_cache_tokens": 1 << 22}
        self._engine = Engine(replace(config, **limits, adapter_memory=1 << 28, async_scheduling=True))
        self._temperature = temperature
        self._sequences = 0

    def start(self, sequences: int, adapters: int, context: int) -> None:
        """Start sequences and run until all of them decode.

        Their lengths are spread around the context, so that their pages fill up in different steps.
        """
        random, waiting = Random(1), set[str]()
        vocabulary = range(3, self._engine.info.vocab_size)
        sampling = SamplingParams(max_tokens=1 << 16, temperature=self._temperature, ignore_eos=True)
        for index in range(sequences):
            prompt = random.choices(vocabulary, k=random.randint(context // 2, context * 3 // 2))
            parts = [WeightedAdapter(self._digests[index % adapters])] if adapters else []
            request = AddRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, adapters=parts)
            self._engine.add_request(request)
            waiting.add(request.request_id)
        while waiting:
            waiting -= self._step()
        self._sequences = sequences

    def steps(self, count: int) -> dict[str, float]:
        for _ in range(8):
            self._step()
        spent = []
        for _ in range(count):
            self._timers.take()
            if len(self._step()) != self._sequences:
                raise RuntimeError("a step was not for all sequences")
            spent.append(self._timers.take())
        return {stage: quantiles((each[stage] for each in spent), n=10)[0] * 1e3 for stage in spent[0]}

    def finish(self) -> None:
        for index in range(self._sequences):
            self._engine.abort(str(index))
        while self._engine.has_work():
            self._engine.step()

    def _step(self) -> set[str]:
        outputs = self._engine.step()
        if faults := [output.error for output in outputs if output.error]:
            raise RuntimeError(faults[0])
        return {output.request_id for output in outputs}


def main() -> None:
    base, store, max_running, temperature = sys.argv[1:]
    fake_device()
    subject = MeasuredEngine(base, store, int(max_running), float(temperature))
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        asked, answer = json.loads(line), dict[str, float]()
        if "start" in asked:
            subject.start(asked["start"], asked["adapters"], asked["context"])
        elif "steps" in asked:
            answer = subject.steps(asked["steps"])
        else:
            subject.finish()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
