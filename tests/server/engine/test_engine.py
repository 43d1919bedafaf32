"""The engine in this process: requests in, outputs out, against transformers itself."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftserve.kernels.attention.torch import backend as torch_attention
from peftserve.server.engine.model.errors import UnservableModel

MakeBench = Callable[..., Any]
EOS = 1
PROMPT = [7, 250, 31, 90, 44, 44, 120, 9, 10, 200, 201]
OTHERS = [[5] * 3, [6, 7, 8, 9] * 6, [250], list(range(40, 75)), [*PROMPT[:8], 77]]


@pytest.fixture(scope="session")
def logprobs_of(tiny_llama: Path) -> Callable[[list[int]], torch.Tensor]:
    """transformers' own log-probabilities (tokens, vocabulary) after each token."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, attn_implementation="eager")

    def score(tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
        return logits.log_softmax(-1)

    return score


# What comes out


def test_greedy_tokens_are_those_of_transformers(make_bench: MakeBench, peft: Any) -> None:
    bench = make_bench()
    for i, prompt in enumerate([PROMPT, *OTHERS]):
        bench.add(str(i), prompt, max_tokens=6)
    answers = bench.run()
    for i, prompt in enumerate([PROMPT, *OTHERS]):
        assert answers[str(i)].token_ids == peft.greedy(prompt, 6).token_ids
        assert answers[str(i)].last.finish_reason == "length"
    bench.assert_idle()


def check_report(report: Any, expected: torch.Tensor, token: int, top: int) -> None:
    """expected: (vocabulary,) log-probabilities."""
    assert report.chosen.token_id == token
    assert report.chosen.logprob == pytest.approx(expected[token].item(), abs=1e-4)
    assert report.chosen.rank == 1 + (expected > expected[token] + 1e-5).sum()
    best = expected.topk(top)
    assert [entry.logprob for entry in report.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert [entry.token_id for entry in report.top] == best.indices.tolist()
    assert [entry.rank for entry in report.top] == list(range(1, top + 1))


def test_logprobs_are_transformers_log_softmax(make_bench: MakeBench, logprobs_of: Any) -> None:
    """Also of tokens that were drawn at another temperature: of the raw distribution."""
    answer = make_bench().ask(PROMPT, max_tokens=8, logprobs=3, temperature=2.0, seed=4)
    tokens = answer.token_ids
    expected = logprobs_of(PROMPT + tokens)[len(PROMPT) - 1 :]
    assert len(answer.logprobs) == len(tokens) == 8
    for i, token in enumerate(tokens):
        check_report(answer.logprobs[i], expected[i], token, 3)


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("budget", [4, 64])
def test_prompt_logprobs_are_transformers_log_softmax(
    make_bench: MakeBench, logprobs_of: Any, budget: int, max_tokens: int
) -> None:
    bench = make_bench(max_batch_tokens=budget)
    bench.add("beside", OTHERS[1], max_tokens=9)
    bench.add("scored", PROMPT, max_tokens=max_tokens, prompt_logprobs=2)
    answer = bench.run()["scored"]
    first, *rest = answer.outputs
    assert len(answer.token_ids) == max_tokens
    assert answer.last.finish_reason == "length"
    assert all(output.prompt_logprobs is None for output in rest)
    expected = logprobs_of(PROMPT)
    assert first.prompt_logprobs[0] is None
    assert len(first.prompt_logprobs) == len(PROMPT)
    for i, report in enumerate(first.prompt_logprobs[1:], 1):
        check_report(report, expected[i - 1], PROMPT[i], 2)
    bench.assert_idle()


def test_prompt_logprobs_survive_a_preemption(make_bench: MakeBench, logprobs_of: Any, peft: Any) -> None:
    bench = make_bench(kv_cache_tokens=48, max_batch_tokens=8)
    bench.add("old", PROMPT, max_tokens=34)
    bench.add("scored", PROMPT[:9], max_tokens=20, prompt_logprobs=0)
    answers = bench.run()
    assert bench.engine.stats().preemptions > 0
    reports = answers["scored"].outputs[0].prompt_logprobs
    expected = logprobs_of(PROMPT[:9])[torch.arange(8), torch.tensor(PROMPT[1:9])]
    assert [report.chosen.logprob for report in reports[1:]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert answers["scored"].token_ids == peft.greedy(PROMPT[:9], 20).token_ids
    assert answers["old"].token_ids == peft.greedy(PROMPT, 34).token_ids


@pytest.mark.parametrize("overlapped", [False, True])
def test_pages_that_are_taken_back_change_no_token(make_bench: MakeBench, peft: Any, overlapped: bool) -> None:
    """One tenant has all of the cache when another comes, which is answered before any of the first one's ends."""
    bench = make_bench(kv_cache_tokens=160, max_batch_tokens=32, async_scheduling=overlapped)
    prompts = {f"hog {i}": prompt for i, prompt in enumerate(OTHERS)}
    for name, prompt in prompts.items():
        bench.add(name, prompt, max_tokens=60, tenant="hog")
    tokens = {name: list[int]() for name in (*prompts, "newcomer")}
    ended: list[str] = []

    def step() -> None:
        for output in bench.step():
            tokens[output.request_id] += output.token_ids
            ended.extend([output.request_id] if output.finish_reason else [])

    while bench.engine.stats().preemptions == 0:
        step()
    bench.add("newcomer", PROMPT, max_tokens=8, tenant="newcomer")
    while bench.engine.has_work():
        step()
    assert ended[0] == "newcomer"
    for name, prompt in prompts.items():
        assert tokens[name] == peft.greedy(prompt, 60).token_ids
    assert tokens["newcomer"] == peft.greedy(PROMPT, 8).token_ids
    bench.assert_idle()


# What ends a sequence


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_max_tokens_is_exact(make_bench: MakeBench, max_tokens: int) -> None:
    answer = make_bench().ask(PROMPT, max_tokens=max_tokens)
    assert len(answer.token_ids) == max_tokens
    assert [output.finish_reason for output in answer.outputs] == [None] * (max_tokens - 1) + ["length"]


def test_the_context_ends_a_sequence_too(make_bench: MakeBench) -> None:
    answer = make_bench(max_model_len=16).ask(PROMPT, max_tokens=100)
    assert len(answer.token_ids) == 16 - len(PROMPT)
    assert answer.last.finish_reason == "length"


def test_a_context_larger_than_the_cache_is_cut(make_bench: MakeBench) -> None:
    bench = make_bench(kv_cache_tokens=20)
    assert bench.engine.info.max_model_len == 20
    assert len(bench.ask(PROMPT, max_tokens=100).token_ids) == 20 - len(PROMPT)


def test_a_stop_token_ends_it_and_is_the_last_token(make_bench: MakeBench) -> None:
    bench = make_bench()
    free = bench.ask(PROMPT, max_tokens=12).token_ids
    stop = free[4]
    first = free.index(stop)
    answer = bench.ask(PROMPT, max_tokens=12, stop_token_ids=[299, stop])
    assert answer.token_ids == free[: first + 1]
    assert (answer.last.finish_reason, answer.last.stop_token_id) == ("stop", stop)
    bench.assert_idle()


def test_the_models_end_of_sequence_ends_it_unless_ignored(make_bench: MakeBench) -> None:
    bench = make_bench()
    bias = {"logit_bias": {EOS: 100.0}, "max_tokens": 3}
    answer = bench.ask(PROMPT, ignore_eos=False, **bias)
    assert (answer.token_ids, answer.last.finish_reason, answer.last.stop_token_id) == ([EOS], "stop", EOS)
    answer = bench.ask(PROMPT, ignore_eos=True, **bias)
    assert (answer.token_ids, answer.last.finish_reason, answer.last.stop_token_id) == ([EOS] * 3, "length", None)


@pytest.mark.parametrize("ends", [{"ignore_eos": False}, {"stop_token_ids": [EOS]}])
def test_min_tokens_holds_back_the_end(make_bench: MakeBench, ends: dict[str, Any]) -> None:
    answer = make_bench().ask(PROMPT, max_tokens=9, min_tokens=4, logit_bias={EOS: 100.0}, **ends)
    assert EOS not in answer.token_ids[:4]
    assert answer.token_ids[4:] == [EOS]
    assert answer.last.finish_reason == "stop"


# What does not matter


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_seed_gives_the_same_tokens_whatever_runs_beside(
    make_bench: MakeBench, adapters: dict[str, Path], temperature: float
) -> None:
    seeded = {"temperature": temperature, "seed": 11, "max_tokens": 12, "top_p": 0.9}
    bench = make_bench(adapters.items())
    alone = bench.ask(PROMPT, "a", **seeded).token_ids
    crowded = make_bench(adapters.items(), max_batch_tokens=16, kv_cache_tokens=128)
    for i, prompt in enumerate(OTHERS):
        crowded.add(str(i), prompt, "abc"[: i % 3], temperature=1.0, max_tokens=5 + i)
    crowded.step()
    crowded.add("one", PROMPT, "a", **seeded)
    assert crowded.run()["one"].token_ids == alone
    assert bench.ask(PROMPT, "a", **{**seeded, "seed": 12}).token_ids != alone


def test_without_a_seed_each_request_draws_its_own(make_bench: MakeBench) -> None:
    bench = make_bench()
    drawn = {tuple(bench.ask(PROMPT, max_tokens=8, temperature=2.0).token_ids) for _ in range(4)}
    assert len(drawn) == 4


def test_a_sequence_may_be_aborted_at_any_moment(make_bench: MakeBench, adapters: dict[str, Path], peft: Any) -> None:
    bench = make_bench(adapters.items(), max_batch_tokens=8, kv_cache_tokens=96, max_loras=2)
    expected = peft.greedy(PROMPT, 10, ((adapters["a"], 1.0),)).token_ids
    for moment in range(0, 28, 3):
        bench.add("stays", PROMPT, "a", max_tokens=10)
        bench.add("goes", OTHERS[1], "b", max_tokens=20)
        bench.add("base", OTHERS[3], max_tokens=4)
        outputs = [output for _ in range(moment) for output in bench.step()]
        bench.engine.abort("goes")
        bench.engine.abort("goes")
        bench.engine.abort("never seen")
        outputs += [output for answer in bench.run().values() for output in answer.outputs]
        assert [t for o in outputs if o.request_id == "stays" for t in o.token_ids] == expected
        bench.assert_idle()
        bench.engine.start_release("a")
        bench.engine.start_release("b")
        while bench.engine.adapters.is_busy():
            bench.engine.poll()
        assert bench.engine.stats().device_adapter_bytes == 0
        for digest in "ab":
            bench.engine.inspect_adapter(digest, adapters[digest])


def test_an_id_may_be_used_again_after_an_abort(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.add("one", PROMPT, max_tokens=5)
    bench.step()
    bench.engine.abort("one")
    assert len(bench.ask(PROMPT, max_tokens=2).token_ids) == 2


# Prefixes


def test_a_known_prefix_is_not_run_again(make_bench: MakeBench) -> None:
    bench = make_bench()
    first, second = (bench.ask(PROMPT, max_tokens=3) for _ in range(2))
    assert (first.outputs[0].cached_tokens, second.outputs[0].cached_tokens) == (0, 8)
    assert [output.cached_tokens for output in second.outputs[1:]] == [None, None]
    assert first.token_ids == second.token_ids
    stats = bench.engine.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (22, 8)
    assert first.outputs[0].queue_seconds >= 0
    assert first.outputs[1].queue_seconds is None


def test_prefixes_of_others_are_not_found(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench(adapters.items())
    asked: list[dict[str, Any]] = [
        {},
        {"salt": "tenant"},
        {"adapters": "a"},
        {"adapters": "b"},
        {"adapters": [("a", 0.5)]},
        {"adapters": [("a", 0.5), ("b", 0.5)]},
    ]
    for expected in (0, 8):
        answers = [bench.ask(PROMPT, max_tokens=1, **options) for options in asked]
        assert [answer.outputs[0].cached_tokens for answer in answers] == [expected] * len(asked)


def test_prefix_caching_may_be_off(make_bench: MakeBench) -> None:
    bench = make_bench(prefix_caching=False)
    assert [bench.ask(PROMPT, max_tokens=1).outputs[0].cached_tokens for _ in range(2)] == [0, 0]


# What cannot be served


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [], "max_tokens": 0}, "the prompt is empty"),
        ({"prompt": [5] * 64}, "64 tokens does not fit the context of 64"),
        ({"prompt": [5] * 65, "max_tokens": 0}, "65 tokens does not fit"),
        ({"prompt": [5, 300]}, "outside of the vocabulary of 300"),
        ({"prompt": [-1, 5]}, "outside of the vocabulary of 300"),
        ({"prompt": PROMPT, "adapters": "abc"}, "a mixture of 3 adapters needs --max-loras of at least as many"),
    ],
)
def test_what_can_never_run_is_refused_at_once(make_bench: MakeBench, request_: dict[str, Any], message: str) -> None:
    bench = make_bench(max_model_len=64, max_loras=2)
    with pytest.raises(ValueError, match=message):
        bench.add("one", **request_)
    bench.assert_idle()


def test_the_longest_prompts_that_fit_are_served(make_bench: MakeBench) -> None:
    bench = make_bench(max_model_len=64)
    assert len(bench.ask([5] * 63, max_tokens=9).token_ids) == 1
    assert len(bench.ask([5] * 64, max_tokens=0, prompt_logprobs=0).outputs[0].prompt_logprobs) == 64


def test_an_id_in_use_is_refused(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.add("one", PROMPT)
    with pytest.raises(ValueError, match="'one' is in use"):
        bench.add("one", PROMPT)


def test_a_step_that_fails_fails_only_its_batch(
    make_bench: MakeBench, peft: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(max_running=2)
    bench.ask(PROMPT, max_tokens=1)
    for name in ("first", "second", "third"):
        bench.add(name, PROMPT, max_tokens=4)
    bench.step()
    runner = bench.engine._runner
    run = runner.run

    def fail_once(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(runner, "run", run)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(runner, "run", fail_once)
    with caplog.at_level(logging.CRITICAL):
        failed = {output.request_id: output.error for output in bench.step()}
    assert set(failed) == {"first", "second"}
    assert all("could not run this request's step" in error for error in failed.values())
    assert bench.engine.stats().failed_steps == 1
    answer = bench.run()["third"]
    assert answer.outputs[0].cached_tokens == 0, "what a broken step may have written is not trusted"
    assert answer.token_ids == peft.greedy(PROMPT, 4).token_ids
    bench.assert_idle()


def test_a_model_that_pages_would_change_is_refused(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    read = torch_attention._read
    monkeypatch.setattr(torch_attention, "_read", lambda cache, pages: read(cache, pages.roll(1)))
    with pytest.raises(UnservableModel, match="with the paged KV cache"):
        make_bench()


def test_the_base_is_never_written(make_bench: MakeBench, adapters: dict[str, Path]) -> None:
    bench = make_bench()
    before = bench.checksum()
    for digest, folder in adapters.items():
        bench.engine.inspect_adapter(digest, folder)
    for i, prompt in enumerate(OTHERS):
        bench.add(str(i), prompt, "abc"[: i % 4], max_tokens=5)
    bench.run()
    for digest in adapters:
        bench.engine.release_adapter(digest)
    assert bench.checksum() == before


def test_what_the_model_is_said_to_be(make_bench: MakeBench, tiny_llama: Path, oracle: ModuleType) -> None:
    info = make_bench(max_running=7, max_loras=3).engine.info
    assert (info.model_name, info.architecture) == (tiny_llama.name, "LlamaForCausalLM")
    assert (info.dtype, info.device, info.vocab_size, info.max_model_len) == ("float32", "cpu", 300, 256)
    assert (info.num_kv_pages, info.page_size, info.max_running, info.max_loras) == (256, 4, 7, 3)
    assert info.eos_token_ids == [oracle.EOS]
    assert info.tokenizer is not None


def test_what_waits_past_its_time_ends_and_is_never_begun(make_bench: MakeBench) -> None:
    """One that has begun goes on, however long it takes; one that waits for nothing else than its turn does not."""
    bench = make_bench(max_running=1)
    bench.add("runs", PROMPT, max_tokens=40, queue_timeout=60.0)
    begun = bench.step()
    for name in ("late", "patient"):
        bench.add(name, PROMPT, max_tokens=2, tenant=name, queue_timeout=0.0 if name == "late" else None)
    answers = bench.run()
    late = answers["late"].outputs
    assert [(output.error_kind, output.token_ids) for output in late] == [("QueueTimeout", [])]
    assert len(begun) + len(answers["runs"].outputs) == 40
    assert len(answers["patient"].token_ids) == 2
    assert bench.engine.stats().queue_timeouts == 1
    bench.assert_idle()
