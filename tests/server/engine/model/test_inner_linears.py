"""Products that modules make by themselves: found, redirected, and changed by adapters as PEFT changes them."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.adapters.sites import SiteKind
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model.inner_linears import inner_linears, redirect
from peftserve.server.engine.model.loading import load_model
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

PROMPTS = [[7, 8, 9, 7, 8, 41], [(5 * i) % 97 + 9 for i in range(40)]]
NUM_TOKENS = 6


class Router(nn.Module):
    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        if bias:
            self.bias = nn.Parameter(torch.randn(3))
        self.inside = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = F.linear(self.inside(x), weight=self.weight, bias=getattr(self, "bias", None))
        return logits, logits.argmax(-1)


class OfItsOwn(nn.Module):
    """Whose product nobody can tell from any other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + F.linear(x, self.weight * 2)


class InFloat32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.type(torch.float32), self.weight.type(torch.float32))


def test_a_product_with_a_weight_that_was_cast_is_known_too() -> None:
    router, x, told = InFloat32(), torch.randn(5, 4, dtype=torch.bfloat16), []
    with inner_linears([router], lambda module, x: told.append((module, x.dtype))):
        before = router(x)
    assert told == [(router, torch.float32)]
    linear, inputs = redirect(router), list[torch.Tensor]()
    linear.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    torch.testing.assert_close(router(x), before, atol=0, rtol=0)
    assert [given.dtype for given in inputs] == [torch.float32]


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_told_of_and_goes_to_a_linear_over_the_same_weight(bias: bool) -> None:
    router, x, told = Router(bias=bias), torch.randn(5, 4), []
    before = router(x)
    with inner_linears([router, router.inside, OfItsOwn()], lambda module, x: told.append((module, x.shape))):
        router(x)
        OfItsOwn()(x)
    assert told == [(router, x.shape)]
    linear = redirect(router)
    assert linear.weight is router.weight
    assert (linear.bias is None) == (not bias)
    assert all(torch.equal(a, b) for a, b in zip(router(x), before, strict=True))
    linear.forward = lambda x: x[:, :3] * 0 + torch.tensor([0.0, 0.0, 1.0])  # type: ignore[method-assign]
    assert router(x)[1].tolist() == [2] * 5


def test_a_bias_that_is_not_the_modules_own_is_another_product() -> None:
    class Shifted(OfItsOwn):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight, torch.ones(3))

    told: list[Any] = []
    with inner_linears([shifted := Shifted()], lambda *call: told.append(call)):
        shifted(torch.randn(2, 4))
    assert not told


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_routers_are_sites(oracle: ModuleType, tmp_path: Path, architecture: str) -> None:
    loaded = load_model(EngineConfig(model=str(oracle.tiny_model(architecture, 3, tmp_path)), device="cpu"))
    found = [site for site in loaded.sites.table.sites.values() if site.kind is SiteKind.INNER]
    assert len(found) == (1 if architecture == "deepseek_v3" else 2)  # whose first layer is no mixture
    for site in found:
        assert (site.in_features, site.out_features) == (64, 4)
        assert loaded.modules[site.name].weight is loaded.model.get_submodule(site.name).weight


ROUTED = {
    "mixtral": {
        "router": peft.LoraConfig(r=4, target_modules=[], target_parameters=["gate.weight"]),
        "saved": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["gate"]),
        "all": peft.LoraConfig(r=4, target_modules="all-linear"),
    },
    "gpt_oss": {
        "router": peft.LoraConfig(r=4, target_modules=["v_proj"], target_parameters=["router.weight"]),
        "bias": peft.LoraConfig(r=4, target_modules=["q_proj"], bias="all"),
    },
    "deepseek_v3": {
        "all": peft.LoraConfig(r=4, target_modules="all-linear"),
        "dora": peft.LoraConfig(r=4, use_dora=True, target_modules=["kv_b_proj", "kv_a_proj_with_mqa", "q_b_proj"]),
    },
}


@pytest.fixture(params=ROUTED)
def served(request: pytest.FixtureRequest, oracle: ModuleType, tmp_path: Path) -> Iterator[tuple[Any, ...]]:
    """An engine, its model, and adapters by name."""
    model = oracle.tiny_model(request.param, 3, tmp_path / "model")
    engine = Engine(EngineConfig(model=str(model), device="cpu", dtype="float32", max_batch_tokens=32))
    yield engine, model, {n: oracle.method_adapter(model, tmp_path / n, c) for n, c in ROUTED[request.param].items()}
    engine.close()


def test_tokens_are_those_of_peft(oracle: ModuleType, served: tuple[Any, ...]) -> None:
    """All adapters and the base in one batch."""
    engine, model, adapters = served
    models = {"": oracle.plain_model(model)}
    for name, adapter in adapters.items():
        engine.inspect_adapter(name, adapter)
        models[name] = oracle.peft_model(model, adapter)
    wanted = {
        f"{name}/{i}": oracle.peft_generate(own, prompt, NUM_TOKENS).token_ids
        for name, own in models.items()
        for i, prompt in enumerate(PROMPTS)
    }
    assert run(engine, list(wanted)) == wanted
    assert len({tuple(tokens) for tokens in wanted.values()}) > len(models), "adapters that change the text"


def test_virtual_tokens_of_compressed_keys_are_refused(oracle: ModuleType, tmp_path: Path) -> None:
    """PEFT's prompt is read into a cache that holds something else than the attention reads."""
    model = oracle.tiny_model("deepseek_v3", 3, tmp_path / "model")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapter = oracle.method_adapter(model, tmp_path / "prompt", config)
    engine = Engine(EngineConfig(model=str(model), device="cpu", dtype="float32"))
    try:
        with pytest.raises(UnsupportedAdapter, match=r"keys of 1 heads of 16 .* attention reads keys of 4 heads of 32"):
            engine.inspect_adapter("prompt", adapter)
        wanted = oracle.peft_generate(oracle.plain_model(model), PROMPTS[0], NUM_TOKENS).token_ids
        assert run(engine, ["/0"]) == {"/0": wanted}
    finally:
        engine.close()


def run(engine: Engine, names: list[str]) -> dict[str, list[int]]:
    """names: of an adapter and a prompt."""
    found: dict[str, list[int]] = {name: [] for name in names}
    for name in names:
        adapter, _, prompt = name.partition("/")
        sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
        parts = [WeightedAdapter(adapter)] if adapter else []
        request = AddRequest(request_id=name, prompt_token_ids=PROMPTS[int(prompt)], sampling=sampling, adapters=parts)
        engine.add_request(request)
    while engine.has_work():
        for output in engine.step():
            assert not output.error
            found[output.request_id] += output.token_ids
    return found
