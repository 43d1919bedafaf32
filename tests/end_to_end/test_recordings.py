"""All graphs of an engine are made at start: whatever it then runs, nothing is captured again, and no buffer moves.

Kernels plan for a GPU of 132 multiprocessors and the heads of an 8B Llama; what they compute is left out, so that steps
are quick.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels import triton_attention, triton_bypass
from peftserve.kernels.attention import Limits
from peftserve.kernels.triton_attention import TritonAttention
from peftserve.kernels.triton_bypass import TritonBypass
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine, assembly
from peftserve.server.engine.adapters import service
from peftserve.server.engine.model import graphs
from peftserve.server.wire.messages import AdapterPart, AddRequest, SamplingParams

MAX_RUNNING, MAX_LORAS, MAX_LEN = 18, 4, 512
MULTIPROCESSORS = 132
LLAMA_8B = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}


class Kernel:
    """Takes a kernel's place. clears: the argument that it fills with zeros, if any."""

    def __init__(self, clears: int | None = None) -> None:
        self._clears = clears

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            if self._clears is not None:
                args[self._clears].zero_()

        return launch


class Backends:
    """Those of the engine. places: the addresses of all that its graphs may read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attention: TritonAttention
        self.bypass: TritonBypass
        for module, name, kernel in (
            (triton_attention, "attention_kernel", Kernel(clears=6)),
            (triton_attention, "write_kernel", Kernel()),
            (triton_bypass, "bypass_kernel", Kernel()),
        ):
            monkeypatch.setattr(module, name, kernel)
        for module in (triton_attention, triton_bypass):
            monkeypatch.setattr(module, "_multiprocessors", lambda device: MULTIPROCESSORS)
        monkeypatch.setattr(assembly, "make_attention_backend", self._make_attention)
        monkeypatch.setattr(service, "make_bypass_backend", self._make_bypass)

    def places(self) -> list[int]:
        held = [vars(self.attention), vars(self.bypass), vars(self.bypass._slots), self.bypass._kept._asdict()]
        return [value.data_ptr() for there in held for value in there.values() if isinstance(value, torch.Tensor)]

    def _make_attention(
        self, layers: Any, page_size: int, dtype: torch.dtype, device: torch.device, limits: Limits, spare_bytes: int
    ) -> TritonAttention:
        self.attention = TritonAttention(layers, page_size, dtype, device, limits)
        return self.attention

    def _make_bypass(self, arena: torch.Tensor, groups: Any, **limits: int) -> TritonBypass:
        self.bypass = TritonBypass(arena, groups, **limits)
        return self.bypass


class Load:
    """Requests of any kind to one engine, each until its end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._names = 0

    def run(self, requests: Sequence[tuple[int, Sequence[str]]], max_tokens: int = 2) -> None:
        """requests: length of the prompt, and the adapters of the mixture."""
        for length, adapters in requests:
            self._names += 1
            sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
            prompt = [3 + (self._names * 31 + i) % 250 for i in range(length)]
            parts = [AdapterPart(name, 0.5) for name in adapters]
            self.engine.add_request(
                AddRequest(request_id=str(self._names), prompt_token_ids=prompt, sampling=sampling, adapters=parts)
            )
        while self.engine.has_work():
            assert not any(output.error for output in self.engine.step())
        self.engine.check_integrity()


def test_nothing_is_captured_after_the_start(
    oracle: ModuleType, simulated_cuda: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backends = Backends(monkeypatch)
    monkeypatch.setattr(assembly, "make_recorder", graphs.CudaRecorder)
    monkeypatch.setattr(assembly, "check_paged_attention", lambda *args: None)
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
        async_scheduling=True,
    )
    engine = Engine(config)
    captures, places = simulated_cuda.captures, backends.places()
    assert captures == 1 + 2 * len([1, 2, 4, 8, 16, MAX_RUNNING])
    load = Load(engine)
    names = [folder.name for folder in oracle.varied_adapters(model, tmp_path / "adapters", seed=50)]
    try:
        for name in names:
            engine.inspect_adapter(name, tmp_path / "adapters" / name)
        load.run([(MAX_LEN - 1, [])] * 2)  # prefills of the whole budget
        load.run([(MAX_LEN - 40, [names[0]])] * 3, max_tokens=40)  # up to the longest context
        for count in range(1, MAX_RUNNING + 1):
            load.run([(3, [])] * count)
            load.run([(3, [names[i % 3]]) for i in range(count)])
        for first in range(len(names)):  # each in turn takes others' slots
            load.run([(5, [names[(first + i) % len(names)]]) for i in range(MAX_RUNNING)])
        load.run([(20, names[:MAX_LORAS])] * MAX_RUNNING)  # the largest mixtures
        load.run([(240, [names[i % 4]]) for i in range(2 * MAX_RUNNING)], max_tokens=12)
        assert engine.stats().preemptions > 0
        assert engine.stats().adapter_evictions > 0
    finally:
        engine.close()
    assert simulated_cuda.replays > 100
    assert simulated_cuda.captures == captures
    assert backends.places() == places
