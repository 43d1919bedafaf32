"""All graphs of an engine are made at start: whatever it then runs, nothing is captured again, and no buffer moves.

Kernels plan for a GPU of 132 multiprocessors and the heads of an 8B Llama; what they compute is left out, so that steps
are quick.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.kernels.attention.triton import backend as triton_attention
from peftserve.kernels.attention.triton.backend import TritonAttention
from peftserve.kernels.bypass.layout import kinds_for
from peftserve.kernels.bypass.triton import backend as triton_bypass
from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine, assembly
from peftserve.server.engine.adapters import service
from peftserve.server.engine.model import graphs
from peftserve.server.engine.model.self_check import StartCheck
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

pytestmark = pytest.mark.slow

MAX_RUNNING, MAX_LORAS, MAX_LEN = 18, 36, 512
LOADS = 2_500
MULTIPROCESSORS = 132
LLAMA_8B = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}


class Kernel:
    """Stands for a kernel and is recorded like one. clears: the argument that it fills with zeros, if any."""

    def __init__(self, cuda: Any, clears: int | None = None) -> None:
        self._cuda = cuda
        self._clears = clears

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: self._cuda.launch(self._run, args, options)

    def _run(self, *args: Any, **options: Any) -> None:
        if self._clears is not None:
            args[self._clears].zero_()


def make_attention(*args: Any) -> TritonAttention:
    *given, memory, _ = args
    return TritonAttention(*given, memory=memory)


def run_on_kernels(monkeypatch: pytest.MonkeyPatch, cuda: Any) -> None:
    for module, name, kernel in (
        (triton_attention, "attention_kernel", Kernel(cuda, clears=6)),
        (triton_attention, "write_kernel", Kernel(cuda)),
        (triton_bypass, "lists_kernel", Kernel(cuda)),
        (triton_bypass, "shrink_kernel", Kernel(cuda)),
        (triton_bypass, "expand_kernel", Kernel(cuda)),
    ):
        monkeypatch.setattr(module, name, kernel)
    monkeypatch.setattr(triton_attention, "multiprocessors", lambda device: MULTIPROCESSORS)
    monkeypatch.setattr(assembly, "make_attention_backend", make_attention)
    monkeypatch.setattr(service, "make_bypass_backend", TritonBypass)
    monkeypatch.setattr(assembly, "make_recorder", graphs.CudaRecorder)
    monkeypatch.setattr(StartCheck, "run", lambda *args: None)


def tensors_of(thing: Any, name: str, seen: dict[int, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors that our objects hold, with the path of attributes to each.

    seen: objects that were visited, by id, kept alive so that no id is used twice.
    """
    if isinstance(thing, torch.Tensor):
        yield name, thing
    elif id(thing) not in seen:
        seen[id(thing)] = thing
        for key, value in _parts(thing):
            yield from tensors_of(value, f"{name}.{key}", seen)


def _parts(thing: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(thing, nn.Module):
        yield from (*thing.named_parameters(), *thing.named_buffers())
    elif isinstance(thing, Mapping):
        yield from list(thing.items())
    elif isinstance(thing, list | tuple | set):
        yield from enumerate(thing)
    elif isinstance(thing, functools.partial):
        yield from enumerate((thing.func, *thing.args))
    elif type(thing).__module__.startswith("peftserve."):
        yield from list(getattr(thing, "__dict__", {}).items())
    elif hasattr(thing, "__self__"):
        yield "self", thing.__self__


class Load:
    """Requests of any kind to one engine, each until its end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._names = 0

    def run(self, requests: Sequence[tuple[int, Sequence[str]]], max_tokens: int = 2) -> None:
        """Run requests at once. requests: the length of each prompt, and the adapters of its mixture."""
        for length, adapters in requests:
            self._names += 1
            sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
            prompt = [3 + (self._names * 31 + i) % 250 for i in range(length)]
            parts = [WeightedAdapter(name, 0.5) for name in adapters]
            self.engine.add_request(
                AddRequest(request_id=str(self._names), prompt_token_ids=prompt, sampling=sampling, adapters=parts)
            )
        while self.engine.has_work():
            assert not any(output.error for output in self.engine.step())
        self.engine.check_integrity()


def test_nothing_is_captured_after_the_start(
    oracle: ModuleType, simulated_cuda: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_on_kernels(monkeypatch, simulated_cuda)
    model = oracle.tiny_model("llama", 2, tmp_path / "model", **LLAMA_8B, max_position_embeddings=MAX_LEN)
    config = EngineConfig(
        model=str(model),
        device="cpu",
        dtype="float32",
        max_model_len=MAX_LEN,
        max_batch_tokens=2 * MAX_LEN,
        max_running=MAX_RUNNING,
        max_loras=MAX_LORAS,
        kv_cache_tokens=6 * MAX_LEN,
        adapter_memory=1 << 26,
        async_scheduling=True,
    )
    engine = Engine(config)

    def read_by_graphs() -> dict[str, int]:
        """Return the addresses of the engine's tensors that graphs read or write."""
        known = simulated_cuda.addresses()
        found = tensors_of(engine, "engine", {})
        return {name: t.data_ptr() for name, t in found if t.untyped_storage().data_ptr() in known}

    captures, places = simulated_cuda.captures, read_by_graphs()
    assert captures == 1 + sum(1 + len(kinds_for(rows)) for rows in (1, 2, 4, 8, 16, MAX_RUNNING))
    for buffer in ("table", "_arena", "records", "h", "_on_device"):
        assert any(name.endswith(buffer) for name in places), buffer
    load = Load(engine)
    names = [folder.name for folder in oracle.varied_adapters(model, tmp_path / "adapters", seed=50)]
    small = oracle.random_adapter(model, tmp_path / "small", 1, r=1, target_modules=["q_proj"], layers_to_transform=[1])
    many = [f"small {i}" for i in range(3 * MAX_LORAS)]
    try:
        for name in names:
            engine.inspect_adapter(name, tmp_path / "adapters" / name)
        for name in many:
            engine.inspect_adapter(name, small)
        load.run([(MAX_LEN - 1, [])] * 2)  # prefills of the whole budget
        load.run([(MAX_LEN - 40, [names[0]])] * 3, max_tokens=40)  # up to the longest context
        for count in range(1, MAX_RUNNING + 1):
            load.run([(3, [])] * count)
            load.run([(3, [names[i % 3]]) for i in range(count)])
        load.run([(20, [*names, *many][:MAX_LORAS])] * MAX_RUNNING)  # the largest mixtures
        load.run([(240, [names[i % 4]]) for i in range(2 * MAX_RUNNING)], max_tokens=12)
        assert engine.stats().preemptions > 0
        first = 0
        while engine.stats().adapter_loads < LOADS:  # each takes another's slot
            some = [many[(first + i) % len(many)] for i in range(MAX_LORAS)]
            parts = [(1, some[i : i + 2]) for i in range(0, MAX_LORAS, 2)]
            load.run(parts, max_tokens=2 if first % (10 * MAX_LORAS) == 0 else 1)
            first += MAX_LORAS
        assert engine.stats().adapter_evictions >= LOADS - MAX_LORAS
    finally:
        engine.close()
    assert simulated_cuda.replays > 100
    assert simulated_cuda.captures == captures
    after = read_by_graphs()
    assert {name: after.get(name) for name in places} == places


@pytest.mark.parametrize("name", ["mamba2", "mamba"])
def test_decodes_of_states_are_replayed_on_the_slots_of_their_sequences(
    name: str, oracle: ModuleType, simulated_cuda: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a model without attention, so that replays compute all of a bare step; prompts of one token begin anew."""
    run_on_kernels(monkeypatch, simulated_cuda)
    model = oracle.tiny_model(name, 0, tmp_path / "model")
    options = {"device": "cpu", "dtype": "float32", "max_batch_tokens": 16, "max_running": 4, "num_threads": 1}
    reference, engine = oracle.PeftOracle(model), Engine(EngineConfig(model=str(model), **options))
    captures, before = simulated_cuda.captures, simulated_cuda.replays
    wanted, found = dict[str, list[int]](), dict[str, list[int]]()
    try:
        for lengths in ((30, 2, 17, 1), (1,), (1, 1)):  # the later ones on seats whose states are others' still
            for length in lengths:
                prompt = [(7 * j + len(wanted)) % 280 + 9 for j in range(length)]
                request_id = str(len(wanted))
                wanted[request_id] = reference.sure(prompt, 8)
                sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
                engine.add_request(AddRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling))
            while engine.has_work():
                for output in engine.step():
                    assert output.error is None
                    found.setdefault(output.request_id, []).extend(output.token_ids)
    finally:
        engine.close()
    assert {key: found[key][: len(sure)] for key, sure in wanted.items()} == wanted
    assert simulated_cuda.replays > before + 5
    assert simulated_cuda.captures == captures > 1
