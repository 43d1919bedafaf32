"""Prefixes, gates and vocabularies that adapters bring, in a running engine: pages, lengths and neighbours."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, SequenceOutput, WeightedAdapter

PREFIX = 21
PAGE = 8
MORE = 310


@pytest.fixture(scope="module")
def model(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = oracle.tiny_model("llama", 3, tmp_path_factory.mktemp("prefix"))
    return folder


@pytest.fixture(scope="module")
def prefix(oracle: ModuleType, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX)
    folder: Path = oracle.method_adapter(model, tmp_path_factory.mktemp("prefix") / "adapter", config)
    return folder


@pytest.fixture(scope="module")
def gated(oracle: ModuleType, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=[7, 8]
    )
    folder: Path = oracle.method_adapter(model, tmp_path_factory.mktemp("gated") / "adapter", config)
    return folder


@pytest.fixture
def engine(model: Path, prefix: Path, gated: Path) -> Iterator[Engine]:
    engine = Engine(EngineConfig(model=str(model), device="cpu", dtype="float32", page_size=PAGE, max_model_len=64))
    engine.inspect_adapter("prefix", prefix)
    engine.inspect_adapter("gated", gated)
    yield engine
    engine.check_integrity()
    engine.close()


def ask(engine: Engine, name: str, prompt: list[int], adapter: str = "", max_tokens: int = 4, **sampling: Any) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **sampling)
    parts = [WeightedAdapter(adapter)] if adapter else []
    engine.add_request(AddRequest(request_id=name, prompt_token_ids=prompt, sampling=params, adapters=parts))


@pytest.fixture
def answers(engine: Engine) -> Callable[[], dict[str, list[SequenceOutput]]]:
    def run() -> dict[str, list[SequenceOutput]]:
        outputs: dict[str, list[SequenceOutput]] = {}
        while engine.has_work():
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
            engine.check_integrity()
        return outputs

    return run


def tokens(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_a_prefix_costs_no_prefill(engine: Engine, answers: Any) -> None:
    """The runner sees the prompt's tokens only, also for the first request after a load."""
    chunks: list[tuple[int, int | None]] = []
    run = engine._runner.run

    def watched(batch: Any, *feed: Any, **also: Any) -> Any:
        prefills = [chunk for chunk in batch.chunks if chunk.start < chunk.sequence.num_prompt]
        chunks.extend((chunk.num_tokens, chunk.fill) for chunk in prefills)
        return run(batch, *feed, **also)

    engine._runner.run = watched  # type: ignore[method-assign]
    ask(engine, "cold", [5, 6, 9], "prefix")
    answers()
    ask(engine, "warm", [9, 6], "prefix")
    answers()
    assert chunks == [(3, 0), (2, PREFIX // PAGE * PAGE)], "the warm one copies no whole page"


def test_requests_of_one_adapter_share_the_whole_pages_of_its_prefix(engine: Engine, answers: Any) -> None:
    for i in range(4):
        ask(engine, str(i), [5 + i, 6, 9], "prefix")
    used = 0
    while engine.has_work():
        engine.step()
        used = max(used, engine.stats().kv_pages_used)
    assert used == PREFIX // PAGE + 4 * 2


def test_prompt_logprobs_after_a_prefix_are_those_of_the_prompt(
    engine: Engine, answers: Any, oracle: ModuleType, model: Path, prefix: Path
) -> None:
    prompt = [5, 17, 42, 99, 7]
    ask(engine, "scored", prompt, "prefix", prompt_logprobs=0)
    reports = answers()["scored"][0].prompt_logprobs
    assert reports[0] is None
    logits = oracle.peft_logits(model, prefix, prompt).log_softmax(-1)
    for i, report in enumerate(reports[1:], 1):
        assert report.chosen.token_id == prompt[i]
        assert report.chosen.logprob == pytest.approx(logits[i - 1, prompt[i]].item(), abs=1e-4)


def test_virtual_tokens_count_against_the_context(engine: Engine, answers: Any) -> None:
    ask(engine, "fits", [9] * (64 - PREFIX - 1), "prefix")
    ask(engine, "long", [9] * (64 - PREFIX), "prefix")
    ask(engine, "base", [9] * 60)
    outputs = answers()
    assert len(tokens(outputs["fits"])) == 1
    assert outputs["long"][0].error == (
        f"a prompt of {64 - PREFIX} tokens behind the {PREFIX} that the adapter brings does not fit the context of 64"
    )
    assert len(tokens(outputs["base"])) == 4


def test_before_the_invocation_pages_are_the_bases_own(engine: Engine, answers: Any) -> None:
    prompt = list(range(20, 40))
    ask(engine, "base", prompt)
    answers()
    ask(engine, "invoked", [*prompt, 7, 8, 3, 4], "gated")
    assert answers()["invoked"][0].cached_tokens == len(prompt) // PAGE * PAGE
    ask(engine, "again", [*prompt, 7, 8, 3, 4, 5, 6], "gated")
    assert answers()["again"][0].cached_tokens == 24, "the page with the invocation is the adapter's, found by its next"
    ask(engine, "not the adapter's", [*prompt, 7, 8, 3, 4, 5, 6])
    assert answers()["not the adapter's"][0].cached_tokens == len(prompt) // PAGE * PAGE


def test_without_its_invocation_the_adapter_does_nothing(engine: Engine, answers: Any) -> None:
    ask(engine, "base", [20, 21, 22, 8, 7])
    ask(engine, "gated", [20, 21, 22, 8, 7], "gated")
    outputs = answers()
    assert tokens(outputs["base"]) == tokens(outputs["gated"])


@pytest.fixture(scope="module")
def wide(oracle: ModuleType, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An adapter of a vocabulary with ten tokens more, two of them trained; and PEFT's model with it."""
    folder = tmp_path_factory.mktemp("wide") / "adapter"
    torch.manual_seed(0)
    base = oracle.plain_model(model)
    base.resize_token_embeddings(MORE)
    with torch.no_grad():  # so that it says the new ones
        base.lm_head.weight[300:] = 2 * base.lm_head.weight[:10] + 0.5 * torch.randn(10, 64)
    targets = ["q_proj", "v_proj"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, trainable_token_indices=[5, 303])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grown = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in grown.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grown.save_pretrained(folder)
    return folder, grown.eval()


def test_a_larger_vocabulary_is_its_adapters_alone(
    engine: Engine, answers: Any, oracle: ModuleType, model: Path, wide: tuple[Path, Any]
) -> None:
    folder, grown = wide
    engine.inspect_adapter("wide", folder)
    prompt = [20, 303, 5, 309, 40]
    ask(engine, "wide", prompt, "wide", max_tokens=12)
    ask(engine, "base", [20, 21, 22], max_tokens=12)
    ask(engine, "gated", prompt, "gated")
    outputs = answers()
    wanted = oracle.peft_generate(grown, prompt, 12).token_ids
    assert max(wanted) >= 300
    assert tokens(outputs["wide"]) == wanted
    assert tokens(outputs["base"]) == oracle.peft_generate(oracle.plain_model(model), [20, 21, 22], 12).token_ids
    assert outputs["gated"][0].error == "the prompt holds a token id outside of the vocabulary of 300"
