"""Outputs that are held to grammars, beside others that are not, in a running engine with the demo's model."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tokenizers import Tokenizer

import peftserve.server.demo as demo

MakeBench = Callable[..., Any]
DEMO = Path(demo.__file__).with_name("base")
PROMPT = [40, 41, 42, 43, 44]
NEIGHBOUR = [50, 51, 52]
WHITESPACE = r"[ \t]{1,4}|\r?\n[ \t]{0,40}"  # with an end, as the API has it

_simple = st.one_of(
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 999),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.just({"type": ["boolean", "null"]}),
    st.lists(st.sampled_from([1, "a", None, True, 'q"', [1], {"k": 2}]), min_size=1, max_size=3).map(
        lambda v: {"enum": v}
    ),
    st.just({"type": "string", "pattern": "^[a-c]{2}-\\d$"}),
    st.just({"type": "string", "format": "date"}),
)


def _object(properties: dict[str, Any], required: int) -> dict[str, Any]:
    needed = list(properties)[:required]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


SCHEMAS = st.recursive(
    _simple,
    lambda inner: st.one_of(
        st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 2)),
        st.builds(
            _object, st.dictionaries(st.sampled_from(["a", "b c", "é", 'd"']), inner, max_size=3), st.integers(0, 3)
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several}),
    ),
    max_leaves=5,
)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def grammar(schema: Any) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})


def text_of(answer: Any) -> str:
    text: str = tokenizer().decode(answer.token_ids)
    return text


def make(make_bench: MakeBench, **options: Any) -> Any:
    return make_bench(model=str(DEMO), dtype="float32", **options)


@pytest.mark.slow
@pytest.mark.parametrize("overlapped", [False, True])
def test_answers_validate_and_neighbours_stay_as_they_are(make_bench: MakeBench, overlapped: bool) -> None:
    """With few pages, so that some are preempted: greedy, at temperature 1 and at 50, which is as good as random."""
    bench = make(make_bench, async_scheduling=overlapped, kv_cache_tokens=512, max_running=6)
    alone = bench.ask(NEIGHBOUR, max_tokens=30).token_ids

    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(SCHEMAS, min_size=3, max_size=3))
    def check(schemas: list[Any]) -> None:
        for i, (schema, temperature) in enumerate(zip(schemas, (0.0, 1.0, 50.0), strict=True)):
            held = {"grammar": grammar(schema), "ignore_eos": False, "temperature": temperature, "seed": i}
            bench.add(f"held{i}", PROMPT, max_tokens=300, **held)
        bench.add("free", NEIGHBOUR, max_tokens=30)
        answers = bench.run()
        assert answers["free"].token_ids == alone
        for i, schema in enumerate(schemas):
            answer = answers[f"held{i}"]
            assert answer.last.error is None, (schema, answer.last.error)
            if answer.last.finish_reason == "stop":
                jsonschema.validate(json.loads(text_of(answer)), schema)
            finished.append(answer.last.finish_reason == "stop")

    finished: list[bool] = []
    check()
    assert sum(finished) > 0.9 * len(finished)
    bench.assert_idle()


def test_what_ends_an_answer(make_bench: MakeBench) -> None:
    bench = make(make_bench)
    yes = LLMatcher.grammar_from_lark('start: "yes" | "no"')
    bench.add("whole", PROMPT, max_tokens=30, grammar=yes, ignore_eos=False)
    bench.add("no end", PROMPT, max_tokens=30, grammar=yes, ignore_eos=True)
    bench.add("at least", PROMPT, max_tokens=30, grammar=yes, ignore_eos=False, min_tokens=20)
    bench.add("cut", PROMPT, max_tokens=2, grammar=LLMatcher.grammar_from_regex("x{90}"), ignore_eos=False)
    bench.add("bad", PROMPT, max_tokens=2, grammar="start: other")
    answers = bench.run()
    for name in ("whole", "no end", "at least"):
        assert (text_of(answers[name]), answers[name].last.finish_reason) in [("yes", "stop"), ("no", "stop")], name
    assert answers["cut"].last.finish_reason == "length"
    assert set(text_of(answers["cut"])) == {"x"}
    assert "other" in (answers["bad"].last.error or "")
    bench.assert_idle()


def test_no_bias_brings_back_what_may_not_come_and_logprobs_are_the_models(make_bench: MakeBench) -> None:
    bench = make(make_bench)
    free = bench.ask(PROMPT, max_tokens=1, logprobs=3)
    wanted = free.token_ids[0]
    digits = LLMatcher.grammar_from_regex("[0-9]{3}")
    held = bench.ask(PROMPT, max_tokens=9, logprobs=3, grammar=digits, logit_bias={wanted: 100.0}, ignore_eos=False)
    assert text_of(held).isdigit()
    assert len(text_of(held)) == 3
    assert [top.token_id for top in held.logprobs[0].top] == [top.token_id for top in free.logprobs[0].top]
    assert [top.logprob for top in held.logprobs[0].top] == pytest.approx(
        [top.logprob for top in free.logprobs[0].top], abs=1e-4
    )
    assert held.logprobs[0].chosen.token_id == held.token_ids[0] != wanted


def test_a_model_without_a_tokenizer_says_so(make_bench: MakeBench, oracle: ModuleType, tmp_path: Path) -> None:
    folder: Path = oracle.tiny_model("llama", 0, tmp_path)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    answer = make_bench(model=str(folder)).ask([7], max_tokens=2, grammar='start: "a"')
    assert "tokenizer" in (answer.last.error or "")
