"""Pooled hidden states in a running engine, against transformers and PEFT with `output_hidden_states`."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from unittest.mock import Mock

import peft as peft_library
import pytest
import torch

from peftserve.server.wire.messages import Pooling

MakeBench = Callable[..., Any]
PROMPT = [7, 250, 31, 90, 44, 44, 120, 9, 10, 200, 201, 18, 77]
LONG = [(11 * i) % 290 + 3 for i in range(61)]
OTHER = [5, 6, 7, 8, 9] * 3
ARCHITECTURES = ["llama", "mistral", "qwen3", "gemma3", "phi3", "gpt2", "opt", "mixtral", "deepseek_v3"]


def vector(answer: Any) -> torch.Tensor:
    """The one vector of an answer."""
    first, *rest = answer.outputs
    assert all(output.pooled is None for output in rest)
    return torch.frombuffer(bytearray(first.pooled), dtype=torch.float32)


def assert_pooled(answer: Any, expected: torch.Tensor, context: Any = None, through: Any = lambda x: x) -> None:
    difference = (through(vector(answer)) - expected).abs().max() / expected.abs().max()
    assert difference < 2e-5, f"{context}: off by {difference}"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = oracle.tiny_model(request.param, 0, tmp_path_factory.mktemp(request.param), num_hidden_layers=3)
    return folder


def test_they_are_those_of_transformers_in_chunks_and_beside_others(
    make_bench: MakeBench, oracle: ModuleType, model: Path
) -> None:
    reference = oracle.PeftOracle(model)
    bench = make_bench(model=str(model), dtype="float32", max_batch_tokens=16, async_scheduling=True)
    bench.add("beside", OTHER, max_tokens=12)
    asked = {f"{kind} {layer}": Pooling(kind, layer) for kind in ("mean", "last") for layer in (None, 0, 1, -2)}
    for name, pooling in asked.items():
        bench.add(name, LONG, max_tokens=0, pooling=pooling)
    answers = bench.run()
    *layers, final = reference.hidden_states(LONG)
    assert len(layers) == 2
    for name, pooling in asked.items():
        states = final if pooling.layer is None else layers[pooling.layer if pooling.layer >= 0 else 1]
        assert_pooled(answers[name], states.mean(0) if pooling.kind == "mean" else states[-1], name)
        assert (answers[name].token_ids, answers[name].last.finish_reason) == ([], "length")
    assert answers["beside"].token_ids == reference.greedy(OTHER, 12).token_ids
    bench.assert_idle()


def test_the_last_layer_is_taken_before_the_norm_behind_it(make_bench: MakeBench, peft: Any) -> None:
    """By transformers' own norm, as its hidden states have the last layer's only behind it."""
    bench, norm = make_bench(), peft._model(()).model.norm
    for layer in (-1, 1):
        answer = bench.ask(PROMPT, max_tokens=0, pooling=Pooling("last", layer))
        with torch.inference_mode():
            assert_pooled(answer, peft.hidden_states(PROMPT)[-1][-1], None, through=norm)


@pytest.mark.parametrize("pooling", [Pooling(cast(Any, "cls")), Pooling(layer=cast(Any, 1.0)), Pooling(layer=9)])
def test_what_the_model_does_not_have_is_refused_before_a_step(make_bench: MakeBench, pooling: Pooling) -> None:
    bench = make_bench()
    with pytest.raises(ValueError, match="there is no"):
        bench.add("wrong", PROMPT, max_tokens=0, pooling=pooling)
    bench.assert_idle()


def test_a_completion_of_the_same_prompt_finds_its_pages(make_bench: MakeBench, peft: Any) -> None:
    """And the prompt is run as a whole whatever is known of it, unless only its last token is asked for."""
    bench = make_bench()
    expected = peft.hidden_states(PROMPT)[-1]
    assert bench.ask(PROMPT, max_tokens=0, pooling=Pooling()).last.cached_tokens == 0
    completion = bench.ask(PROMPT, max_tokens=5)
    assert completion.outputs[0].cached_tokens == 12
    assert completion.token_ids == peft.greedy(PROMPT, 5).token_ids
    again = bench.ask(PROMPT, max_tokens=0, pooling=Pooling())
    assert again.last.cached_tokens == 0
    assert_pooled(again, expected.mean(0))
    last = bench.ask(PROMPT, max_tokens=0, pooling=Pooling("last"))
    assert last.last.cached_tokens == 12
    assert_pooled(last, expected[-1])
    assert bench.ask(PROMPT, max_tokens=1, salt="other").outputs[0].cached_tokens == 0
    bench.assert_idle()


@pytest.mark.parametrize("overlapped", [False, True])
def test_they_survive_preemptions(make_bench: MakeBench, peft: Any, overlapped: bool) -> None:
    bench = make_bench(kv_cache_tokens=64, max_batch_tokens=6, async_scheduling=overlapped)
    bench.add("old", PROMPT, max_tokens=40)
    for name in ("first", "second"):
        bench.add(name, PROMPT[:11], max_tokens=0, pooling=Pooling("mean", 0))
    bench.add("both", PROMPT[:9], max_tokens=20, pooling=Pooling())
    bench.add("long", LONG[:40], max_tokens=0, pooling=Pooling())
    answers = bench.run()
    assert bench.engine.stats().preemptions > 0
    for name in ("first", "second"):
        assert_pooled(answers[name], peft.hidden_states(PROMPT[:11])[0].mean(0), name)
    assert_pooled(answers["both"], peft.hidden_states(PROMPT[:9])[-1].mean(0))
    assert_pooled(answers["long"], peft.hidden_states(LONG[:40])[-1].mean(0))
    assert answers["both"].token_ids == peft.greedy(PROMPT[:9], 20).token_ids
    assert answers["old"].token_ids == peft.greedy(PROMPT, 40).token_ids
    bench.assert_idle()


def test_adapters_and_mixtures_change_them(make_bench: MakeBench, peft: Any, adapters: dict[str, Path]) -> None:
    bench = make_bench(adapters.items(), max_batch_tokens=12)
    for digest in adapters:
        bench.add(digest, PROMPT, [digest], max_tokens=0, pooling=Pooling("mean", 0))
    bench.add("mixed", PROMPT, [("a", 0.5), ("c", 0.5)], max_tokens=0, pooling=Pooling())
    answers = bench.run()
    for digest, folder in adapters.items():
        assert_pooled(answers[digest], peft.hidden_states(PROMPT, ((folder, 1.0),))[0].mean(0), digest)
    mixture = ((adapters["a"], 0.5), (adapters["c"], 0.5))
    assert_pooled(answers["mixed"], peft.hidden_states(PROMPT, mixture)[-1].mean(0))


@pytest.mark.parametrize("budget", [5, 64])
def test_virtual_tokens_are_not_pooled(
    make_bench: MakeBench, oracle: ModuleType, tiny_llama: Path, peft: Any, tmp_path: Path, budget: int
) -> None:
    prefixes = {
        "prefix": peft_library.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7),
        "prompt": peft_library.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    }
    folders = {name: oracle.method_adapter(tiny_llama, tmp_path / name, config) for name, config in prefixes.items()}
    bench = make_bench(folders.items(), max_batch_tokens=budget)
    for name in folders:
        bench.add(name, PROMPT, [name], max_tokens=0, pooling=Pooling())
    answers = bench.run()
    for name, folder in folders.items():
        assert_pooled(answers[name], peft.hidden_states(PROMPT, ((folder, 1.0),))[-1].mean(0), name)


@pytest.mark.slow
def test_only_steps_that_pool_leave_the_compiled_model(make_bench: MakeBench, peft: Any) -> None:
    bench = make_bench(compile=True, max_batch_tokens=16)
    runner = bench.engine._runner
    runner._compiled = compiled = Mock(wraps=runner._compiled)
    bench.add("beside", OTHER, max_tokens=20)
    bench.add("pooled", LONG, max_tokens=0, pooling=Pooling("mean", 0))
    answers = bench.run()
    assert_pooled(answers["pooled"], peft.hidden_states(LONG)[0].mean(0))
    assert answers["beside"].token_ids == peft.greedy(OTHER, 20).token_ids
    assert 0 < compiled.call_count < bench.engine.stats().steps
    assert not any(module._forward_hooks for module in bench.engine._model.modules())


def test_one_that_is_aborted_leaves_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(max_batch_tokens=8, async_scheduling=True)
    bench.add("gone", LONG, max_tokens=0, pooling=Pooling())
    bench.step()
    bench.step()
    bench.engine.abort("gone")
    assert bench.run() == {}
    bench.assert_idle()


def test_a_layer_that_is_not_there_is_refused(make_bench: MakeBench) -> None:
    bench = make_bench()
    assert (bench.engine.info.num_layers, bench.engine.info.hidden_size) == (2, 64)
    for layer in (2, -3):
        with pytest.raises(ValueError, match=f"no layer {layer}: the model has 2, which are 0 to 1 or -2 to -1"):
            bench.add("one", PROMPT, max_tokens=0, pooling=Pooling("mean", layer))
    bench.assert_idle()
