"""A quicker way that fails, or that gives other logits, is given up with a warning, and the model is served without."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine, assembly
from peftserve.server.engine import engine as engine_module
from peftserve.server.engine.model import compiled as compiled_module
from peftserve.server.engine.model.siblings import Siblings
from peftserve.server.wire.messages import AddRequest, ModelInfo, SamplingParams


@pytest.fixture
def model(oracle: ModuleType, tmp_path: Path) -> str:
    return str(oracle.tiny_model("llama", 0, tmp_path))


def assert_serves(model: str, wanted: list[int], **settings: Any) -> ModelInfo:
    engine = Engine(EngineConfig(model=model, device="cpu", dtype="float32", kv_cache_tokens=64, **settings))
    try:
        sampling = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
        engine.add_request(AddRequest(request_id="a", prompt_token_ids=[5, 6, 7], sampling=sampling, adapters=[]))
        found: list[int] = []
        while engine.has_work():
            found += [token for output in engine.step() for token in output.token_ids]
        assert found == wanted
        return engine.info
    finally:
        engine.close()


@pytest.fixture
def wanted(oracle: ModuleType, model: str) -> list[int]:
    tokens: list[int] = oracle.peft_generate(oracle.plain_model(Path(model)), [5, 6, 7], 3).token_ids
    return tokens


def test_a_model_that_cannot_take_parts_gets_products_of_its_own(
    model: str, wanted: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one whose code wants adjoining elements: its first pass fails."""
    base = Siblings._product

    def refuse(self: Siblings, *args: Any) -> Any:
        if self.fused is not None:
            raise RuntimeError("view size is not compatible with input tensor's size and stride")
        return base(self, *args)

    monkeypatch.setattr(assembly, "fused_rows", lambda device: None)
    monkeypatch.setattr(Siblings, "_product", refuse)
    assert_serves(model, wanted)
    assert "one by one: a step of" in caplog.text
    assert "fails: RuntimeError: view size is not compatible" in caplog.text


class Refuses:
    def record(self, run: Callable[[], torch.Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")


class Forgets:
    """Its recordings do nothing when they are run again."""

    def record(self, run: Callable[[], torch.Tensor]) -> Any:
        output = torch.zeros_like(run())
        return Mock(output=output)


@pytest.mark.parametrize(("recorder", "why"), [(Refuses(), "not permitted"), (Forgets(), "the paged KV cache")])
def test_a_model_that_cannot_be_recorded_runs_without_graphs(
    model: str,
    wanted: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recorder: Refuses | Forgets,
    why: str,
) -> None:
    monkeypatch.setattr(assembly, "make_recorder", lambda device: recorder)
    monkeypatch.setattr(engine_module, "is_host", lambda device: False)
    assert assert_serves(model, wanted).cuda_graphs == 0
    (said,) = [record for record in caplog.records if "runs without CUDA graphs" in record.getMessage()]
    assert said.levelno == logging.WARNING
    assert why in said.getMessage()


class Repeats:
    """As a GPU does it."""

    def record(self, run: Callable[[], torch.Tensor]) -> Any:
        recording = Mock(output=run(), side_effect=lambda: recording.output.copy_(run()))
        return recording


def test_graphs_are_counted_where_there_is_a_gpu(
    model: str, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "make_recorder", lambda device: Repeats())
    assert assert_serves(model, wanted, max_running=2).cuda_graphs is None
    monkeypatch.setattr(engine_module, "is_host", lambda device: False)
    assert assert_serves(model, wanted, max_running=2).cuda_graphs == 2 * len([1, 2])
    assert assert_serves(model, wanted, max_running=2, enforce_eager=True).cuda_graphs == 0


def cannot_compile(model: Any, forward: Any, device: torch.device, room: Any, most_rows: int) -> Any:
    raise ValueError("no compiler is here")


class CompiledWrongly:
    def __init__(self, model: Any, forward: Any, device: torch.device, room: Any, most_rows: int) -> None:
        pass

    def __call__(self, inputs: Any) -> torch.Tensor:
        rows = inputs.ids if inputs.logit_rows is None else inputs.logit_rows
        return torch.zeros(len(rows), 300)  # the tiny models' vocabulary


@pytest.mark.parametrize(
    ("made", "why"), [(cannot_compile, "no compiler is here"), (CompiledWrongly, "the paged KV cache")]
)
def test_a_model_that_cannot_be_compiled_is_served_as_it_is(
    model: str,
    wanted: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    made: Callable[..., Any],
    why: str,
) -> None:
    monkeypatch.setattr(compiled_module, "CompiledForward", made)
    with caplog.at_level(logging.WARNING):
        assert_serves(model, wanted, compile=True)
    assert "runs without being compiled" in caplog.text
    assert why in caplog.text


@pytest.mark.parametrize("own", [None, "elsewhere"])
def test_what_is_compiled_is_kept_in_the_state_folder(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    """But where the operator wants it elsewhere."""
    kept: list[str] = []

    def compiled(*_: Any) -> Any:
        kept.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        raise ValueError("seen enough")

    monkeypatch.setattr(compiled_module, "CompiledForward", compiled)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", own or "")
    if own is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    config = EngineConfig(model, device="cpu", kv_cache_tokens=64, compile=True, store=tmp_path / "state" / "adapters")
    Engine(config).close()
    assert kept == [own or str(tmp_path / "state" / "inductor")]
