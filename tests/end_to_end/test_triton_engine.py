"""The engine on Triton kernels, interpreted where there is no GPU: PEFT's tokens, in as few launches as promised."""

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.flash.backend import MixedAttention
from peftserve.kernels.attention.flash.calls import Packed, sdpa_flash
from peftserve.kernels.attention.layout import Limits
from peftserve.kernels.attention.triton.backend import TritonAttention
from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine, assembly
from peftserve.server.engine.adapters import service
from peftserve.server.engine.model import graphs
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter
from tests.kernels.bypass.triton.by_rows import ByRows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_interpreter")]

MAX_TOKENS = 2
NAMES = ("lora", "lora-dora", "lora-lora-bias", "ia3", "beft", "shira")
MIXTURES = {"rides": {"ia3": 0.5, "lora": 0.7}, "conflicts": {"ia3": 0.5, "shira": 0.7, "beft": 1.0}}
PROMPT = [7, 81, 40, 41, 9, 210]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, device: str) -> list[int]:
    """Record the group of each launch of the bypass.

    On the interpreter there are two designs to choose from: an engine launches each once before its first step.
    """
    groups: list[int] = []
    choice = None if device == "cuda" else ByRows()

    def make(arena: torch.Tensor, sites: Any, **limits: Any) -> TritonBypass:
        backend = TritonBypass(arena, sites, choice=choice, **limits)
        shrink, expand = backend._shrink, backend._expand

        def counted(launch: Any, group: int, *args: Any, **options: Any) -> None:
            groups.append(group)
            launch(group, *args, **options)

        monkeypatch.setattr(backend, "_shrink", partial(counted, shrink))
        monkeypatch.setattr(backend, "_expand", partial(counted, expand))
        return backend

    monkeypatch.setattr(service, "make_bypass_backend", make)
    return groups


class Recordings:
    """How often the engine's graphs were captured and replayed: 0 on a GPU, where nobody counts."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    @property
    def captures(self) -> int:
        return 0 if self._cuda is None else self._cuda.captures

    @property
    def replays(self) -> int:
        return 0 if self._cuda is None else self._cuda.replays


@pytest.fixture
def graphs_of(monkeypatch: pytest.MonkeyPatch, device: str, request: pytest.FixtureRequest) -> Recordings:
    """Give engines paged attention in Triton, and graphs: a GPU's own, or simulated ones on the CPU."""
    backend = partial(TritonAttention, num_programs=None if device == "cuda" else 1)
    monkeypatch.setattr(assembly, "make_attention_backend", lambda *args: backend(*args[:-2], memory=args[-2]))
    monkeypatch.setattr(graphs, "SIZES", (4, 16))
    if device == "cuda":
        return Recordings(None)
    monkeypatch.setattr(assembly, "make_recorder", graphs.CudaRecorder)
    return Recordings(request.getfixturevalue("simulated_cuda"))


def test_tokens_are_those_of_peft(
    oracle: ModuleType,
    launches: list[int],
    device: str,
    tmp_path: Path,
    graphs_of: Recordings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that a GPU runs, at once: kernels, graphs, steps that overlap, and one product for modules of one input."""
    monkeypatch.setattr(assembly, "fused_rows", lambda _: None)
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
    config = EngineConfig(
        model=str(model), device=device, dtype="float32", max_loras=8, max_batch_tokens=64, async_scheduling=True
    )
    engine = Engine(config)
    launches.clear()
    replays = graphs_of.replays
    try:
        for name, adapter in adapters.items():
            engine.inspect_adapter(name, adapter)
        for name in wanted:
            parts = [WeightedAdapter(part, weight) for part, weight in MIXTURES.get(name, {name: 1.0}).items()]
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
    groups = 2 * 4  # in each layer q/k/v, o, gate/up and down; nobody changes embedding and head
    steps = [launches[first : first + 2 * groups] for first in range(0, len(launches), 2 * groups)]
    assert len(steps) >= MAX_TOKENS, "one more for each adapter that was still on its way in the step before"
    assert all(step[::2] == step[1::2] for step in steps), "shrink and expand"
    assert all(len(set(step)) == groups for step in steps), "two launches a group and step"
    assert graphs_of.replays == replays, "adapters with operators beside the kernels run without graphs"


def test_graphs_serve_any_mix(
    oracle: ModuleType, graphs_of: Recordings, launches: list[int], device: str, tmp_path: Path
) -> None:
    """One recording for steps of any adapters and of none, while adapters come, go and take each other's slots."""
    model = oracle.tiny_model("llama", 3, tmp_path / "model", num_hidden_layers=1)
    kind = oracle.kind_of("llama")
    made = {n: oracle.method_adapter(model, tmp_path / n, oracle.CATALOG[n].make(kind)) for n in ("lora", "ia3")}
    folders = {"a": made["lora"], "b": made["ia3"], "c": made["lora"]}
    plain = oracle.peft_generate(oracle.plain_model(model), PROMPT, 4).token_ids
    answers = {
        n: oracle.peft_generate(oracle.peft_model(model, there), PROMPT, 4).token_ids for n, there in made.items()
    }
    wanted = {"": plain, "a": answers["lora"], "b": answers["ia3"], "c": answers["lora"]}
    config = EngineConfig(
        model=str(model),
        device=device,
        dtype="float32",
        max_loras=2,
        max_running=4,
        max_batch_tokens=32,
        async_scheduling=True,
    )
    engine = Engine(config)
    captures, replays = graphs_of.captures, graphs_of.replays
    try:
        for name, folder in folders.items():
            engine.inspect_adapter(name, folder)
        found: dict[str, list[int]] = {}
        for round, names in enumerate((["", "a"], ["b", "c", ""], [""])):
            for name in names:
                parts = [WeightedAdapter(name)] if name else []
                engine.add_request(request(f"{round} {name}", parts, max_tokens=4))
            while engine.has_work():
                for output in engine.step():
                    assert not output.error
                    found.setdefault(output.request_id, []).extend(output.token_ids)
            engine.check_integrity()
    finally:
        engine.close()
    assert found == {name: wanted[name.split(" ")[1]] for name in found}
    assert len(found) == 6
    assert device == "cuda" or graphs_of.replays - replays >= 6, "decodes are replays"
    assert graphs_of.captures == captures, "all graphs are there from the start"


def test_prompts_run_through_flash_kernels(
    oracle: ModuleType, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in chunks with a past, after a prefix that others have left, and beside decodes: the model's tokens."""
    calls = list[tuple[int, bool]]()  # rows of the longest sequence, and whether it has a past

    def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, *layer: Any) -> torch.Tensor:
        calls.append((packed.most_rows, packed.most_keys > packed.most_rows))
        return sdpa_flash(query, key, value, packed, *layer)

    def make(layers: Any, page_size: int, dtype: torch.dtype, where: torch.device, limits: Limits, *_: int) -> Any:
        assisted, programs = range(len(layers)), None if device == "cuda" else 1
        own = TritonAttention(layers, page_size, dtype, where, limits, assisted=assisted, num_programs=programs)
        rest = (layers, assisted, page_size, dtype, where)
        return MixedAttention(own, flash, *rest, least_rows=3, most_keys=200)

    monkeypatch.setattr(assembly, "make_attention_backend", make)
    model = oracle.tiny_model("llama", 3, tmp_path / "model")
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", max_batch_tokens=24, max_running=4))
    prompts = {"long": [*range(20, 70)], "shares": [*range(20, 55)], "short": PROMPT, "one": [9]}
    calls.clear()
    found: dict[str, list[int]] = {name: [] for name in prompts}
    try:
        for name, prompt in prompts.items():
            sampling = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
            engine.add_request(AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, adapters=[]))
            for output in engine.step():
                found[output.request_id] += output.token_ids
        while engine.has_work():
            for output in engine.step():
                assert not output.error
                found[output.request_id] += output.token_ids
        engine.check_integrity()
    finally:
        engine.close()
    plain = oracle.plain_model(model)
    assert found == {name: oracle.peft_generate(plain, prompt, 3).token_ids for name, prompt in prompts.items()}
    assert {past for _, past in calls} == {False, True}


@pytest.mark.parametrize(
    ("architecture", "options"), [("llama4", {"num_hidden_layers": 1, "moe_layers": []}), ("bloom", {"n_layer": 1})]
)
def test_layers_whose_windows_restart_and_those_with_a_bias(
    oracle: ModuleType, graphs_of: Recordings, device: str, tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    """In chunks and past the border of a window, beside a decode; decodes by graphs."""
    model = oracle.tiny_model(architecture, 3, tmp_path / "model", **options)
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", max_batch_tokens=16, max_running=2))
    prompts = {"long": [*range(20, 41)], "short": PROMPT}
    found: dict[str, list[int]] = {name: [] for name in prompts}
    try:
        for name, prompt in prompts.items():
            sampling = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
            engine.add_request(AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, adapters=[]))
        while engine.has_work():
            for output in engine.step():
                assert not output.error
                found[output.request_id] += output.token_ids
    finally:
        engine.close()
    plain = oracle.plain_model(model)
    assert found == {name: oracle.peft_generate(plain, prompt, 3).token_ids for name, prompt in prompts.items()}


def request(name: str, parts: list[WeightedAdapter], max_tokens: int = MAX_TOKENS) -> AddRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=0)
    return AddRequest(request_id=name, prompt_token_ids=PROMPT, sampling=sampling, adapters=parts)
