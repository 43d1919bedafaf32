"""The engine on the Triton kernel, interpreted where there is no GPU: PEFT's tokens, in as few launches as promised."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.triton_bypass import TritonBypass
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.adapters import service
from peftserve.server.wire.messages import AdapterPart, AddRequest, SamplingParams

MAX_TOKENS = 2
NAMES = ("lora", "lora-dora", "lora-lora-bias", "ia3", "beft", "shira")
MIXTURES = {"rides": {"ia3": 0.5, "lora": 0.7}, "conflicts": {"ia3": 0.5, "shira": 0.7, "beft": 1.0}}
PROMPT = [7, 81, 40, 41, 9, 210]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The group of each launch, as they come."""
    groups: list[int] = []

    def make(arena: torch.Tensor, sites: Any, *, max_slots: int) -> TritonBypass:
        backend = TritonBypass(arena, sites, max_slots=max_slots, num_programs=None if arena.is_cuda else 1)
        launch = backend._launch

        def counted(group: int, *args: Any, **options: Any) -> None:
            groups.append(group)
            launch(group, *args, **options)

        monkeypatch.setattr(backend, "_launch", counted)
        return backend

    monkeypatch.setattr(service, "make_bypass_backend", make)
    return groups


def test_tokens_are_those_of_peft(oracle: ModuleType, launches: list[int], device: str, tmp_path: Path) -> None:
    model = oracle.tiny_model("llama_biased", 3, tmp_path / "model")
    kind = oracle.kind_of("llama")
    adapters = {name: oracle.method_adapter(model, tmp_path / name, oracle.CATALOG[name].make(kind)) for name in NAMES}
    wanted = {
        name: oracle.peft_generate(oracle.peft_model(model, made), PROMPT, MAX_TOKENS)
        for name, made in adapters.items()
    }
    for name, mixture in MIXTURES.items():
        mixed = oracle.peft_mixture(model, [(adapters[part], weight) for part, weight in mixture.items()])
        wanted[name] = oracle.peft_generate(mixed, PROMPT, MAX_TOKENS)
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", max_loras=8))
    try:
        for name, adapter in adapters.items():
            engine.inspect_adapter(name, adapter)
        for name in wanted:
            parts = [AdapterPart(part, weight) for part, weight in MIXTURES.get(name, {name: 1.0}).items()]
            engine.add_request(request(name, parts))
        found: dict[str, list[Any]] = {name: [] for name in wanted}
        while engine.has_work():
            for output in engine.step():
                assert not output.error
                found[output.request_id] += output.logprobs
    finally:
        engine.close()
    for name, answer in wanted.items():
        assert [report.chosen.token_id for report in found[name]] == answer.token_ids, name
        logprobs = [report.chosen.logprob for report in found[name]]
        assert logprobs == pytest.approx(answer.logprobs, abs=1e-4), name
    layers = 2
    assert len(launches) == MAX_TOKENS * layers * 4  # q/k/v, o, gate/up and down; nobody changes embedding and head
    assert len(set(launches)) == layers * 4


def request(name: str, parts: list[AdapterPart]) -> AddRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0)
    return AddRequest(request_id=name, prompt_token_ids=PROMPT, sampling=sampling, adapters=parts)
