"""Texts in and out without a server: every answer is PEFT's own, whoever else is in the batch."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from peftserve import LLM, SamplingParams
from peftserve.adapters.errors import AdapterNotFound, InvalidAdapter
from peftserve.server.offline import Completion

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
PROMPTS = ["What is a server?", "änother 漢 text", "x"]
SIZES: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_threads": 1, "kv_cache_tokens": 1024}


class World:
    """A tiny model, its tokenizer, two adapters of PEFT's making, and PEFT's own answers."""

    def __init__(self, oracle: ModuleType, folder: Path) -> None:
        self.model: Path = oracle.tiny_model("llama", 0, folder)
        self.adapters: dict[str, Path] = {
            name: oracle.random_adapter(self.model, folder / name, seed, r=4 * seed, target_modules="all-linear")
            for seed, name in enumerate("ab", 1)
        }
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        self._peft = oracle.PeftOracle(self.model)

    def text(self, prompt: str | list[int], **mixture: float) -> str:
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        parts = tuple((self.adapters[name], weight) for name, weight in mixture.items())
        answer = self._peft.greedy(token_ids, GREEDY.max_tokens, parts).token_ids
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))

    def hidden(self, prompt: str, *names: str, layer: int = -1) -> Any:
        mixture = tuple((self.adapters[name], 1.0) for name in names)
        return self._peft.hidden_states(self.tokenizer.encode(prompt), mixture)[layer]


@pytest.fixture(scope="module")
def world(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(oracle, tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def llm(world: World) -> Iterator[LLM]:
    with LLM(world.model, adapters=world.adapters, **SIZES) as llm:
        yield llm


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


def test_prompts_become_vectors(world: World, llm: LLM) -> None:
    """Of the base and of an adapter side by side, and generating goes on as before."""
    means = llm.embed([*PROMPTS, [5, 6, 7]], adapter=[None, "a", "b", {"a": 0.5, "b": 0.5}])
    for prompt, name, vector in zip(PROMPTS, ["", "a", "b"], means, strict=False):
        assert vector == pytest.approx(world.hidden(prompt, *name).mean(0).tolist(), abs=1e-5)
    [first] = llm.embed(PROMPTS[0], kind="last", layer=0)
    assert first == pytest.approx(world.hidden(PROMPTS[0], layer=0)[-1].tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="no layer 7"):
        llm.embed("x", layer=7)
    for wrong in ({"kind": "cls"}, {"layer": 1.0}, {"task_id": 0.5}, {"adapter": 42}, {"prompts": [5.5]}):
        with pytest.raises(ValueError, match=r"no pooling|no layer|task_id|adapter cannot|a prompt is"):
            llm.embed(**{"prompts": "x", **wrong})
    assert texts(llm.generate(PROMPTS[0], sampling=GREEDY)) == [world.text(PROMPTS[0])]


def test_each_prompt_has_its_adapter_in_one_batch(world: World, llm: LLM) -> None:
    mixture = {"a": 0.7, "b": 0.3}
    completions = llm.generate(
        [*PROMPTS, PROMPTS[0]], adapter=[None, "a", "b@1", mixture], sampling=[GREEDY] * 3 + [GREEDY]
    )
    assert texts(completions) == [
        world.text(PROMPTS[0]),
        world.text(PROMPTS[1], a=1.0),
        world.text(PROMPTS[2], b=1.0),
        world.text(PROMPTS[0], **mixture),
    ]
    assert [completion.adapter for completion in completions] == [
        world.model.name,
        "a@1",
        "b@1",
        "a@1*0.7+b@1*0.3",
    ]
    assert {completion.finish_reason for completion in completions} == {"length"}
    llm.engine.check_integrity()
    assert not llm.engine.has_work()


def test_one_prompt_as_text_or_as_tokens(world: World, llm: LLM) -> None:
    token_ids = world.tokenizer.encode(PROMPTS[0])
    [by_text], [by_ids] = (llm.generate(prompt, adapter="a", sampling=GREEDY) for prompt in (PROMPTS[0], token_ids))
    assert by_text.text == by_ids.text == world.text(PROMPTS[0], a=1.0)
    assert (by_text.prompt, by_ids.prompt) == (PROMPTS[0], None)
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == token_ids
    assert len(by_text.token_ids) == GREEDY.max_tokens


def test_chats_go_through_the_models_template(world: World, llm: LLM) -> None:
    chat = [{"role": "user", "content": "hi"}]
    prompt = world.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    expected = world.text(list(prompt), b=1.0)
    assert texts(llm.chat(chat, adapter="b", sampling=GREEDY)) == [expected]
    assert texts(llm.chat([chat, chat], adapter=["b", None], sampling=GREEDY)) == [expected, world.text(list(prompt))]


def test_messages_that_are_none_are_refused(llm: LLM) -> None:
    for messages in ([{"role": "user"}], [{"role": "user", "content": None}], []):
        with pytest.raises(ValueError, match=r"a message has a role and a content|one message or more"):
            llm.chat(messages, sampling=GREEDY)


def test_one_that_is_closed_takes_no_call(world: World) -> None:
    llm = LLM(world.model, adapters={"a": world.adapters["a"]}, **SIZES)
    llm.close()
    for call in (
        lambda: llm.generate([[5, 6]], sampling=GREEDY),
        lambda: llm.generate("x", sampling=GREEDY),
        lambda: llm.chat([{"role": "user", "content": "x"}]),
        lambda: llm.embed("x"),
        lambda: llm.add_adapter("b", world.adapters["b"]),
        lambda: llm.remove_adapter("a"),
    ):
        with pytest.raises(ValueError, match="this LLM is closed"):
            call()
    llm.close()


def test_a_text_ends_before_its_stop_string(llm: LLM) -> None:
    [whole] = llm.generate(PROMPTS[0], sampling=GREEDY)
    stop = whole.text[2:4]
    [cut] = llm.generate(PROMPTS[0], sampling=GREEDY, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert not llm.engine.has_work()


def test_logprobs_are_of_each_token(llm: LLM) -> None:
    sampling = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True, logprobs=2, prompt_logprobs=0)
    [completion] = llm.generate(PROMPTS[0], sampling=sampling)
    assert completion.logprobs is not None
    assert [report.chosen.token_id for report in completion.logprobs] == completion.token_ids
    assert completion.prompt_logprobs is not None
    assert len(completion.prompt_logprobs) == len(completion.prompt_token_ids)


def test_a_name_has_versions_and_can_go(world: World) -> None:
    with LLM(world.model, **SIZES) as llm:
        assert llm.adapters == []
        first, second = llm.add_adapter("x", world.adapters["a"]), llm.add_adapter("x", world.adapters["b"])
        assert (first.version, second.version, second.facts.rank) == (1, 2, 8)
        assert texts(llm.generate([PROMPTS[0]] * 2, adapter=["x", "x@1"], sampling=GREEDY)) == [
            world.text(PROMPTS[0], b=1.0),
            world.text(PROMPTS[0], a=1.0),
        ]
        llm.add_adapter("y", world.adapters["a"])
        llm.remove_adapter("x")
        assert llm.adapters == ["y"]
        assert texts(llm.generate(PROMPTS[0], adapter="y", sampling=GREEDY)) == [world.text(PROMPTS[0], a=1.0)]
        llm.remove_adapter("y")
        stats = llm.engine.stats()
        assert (stats.device_adapter_bytes, stats.host_adapter_bytes) == (0, 0)
        for gone in ("x", "y"):
            with pytest.raises(AdapterNotFound):
                llm.generate(PROMPTS[0], adapter=gone)
            with pytest.raises(AdapterNotFound):
                llm.remove_adapter(gone)
        with pytest.raises(InvalidAdapter):
            llm.add_adapter("z", world.model)
    llm.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, None),
        ({"prompts": [[]]}, "the prompt is empty"),
        ({"prompts": ["x", [10**6]]}, "outside of the vocabulary"),
        ({"prompts": ["x"] * 3, "adapter": ["a", "b"]}, "adapter has 2 entries for 3 prompts"),
        ({"prompts": "x", "sampling": SamplingParams(temperature=-1.0)}, "temperature must be from 0 to 100"),
        ({"prompts": "x", "stop": "word"}, "stop is a list"),
        ({"prompts": "x", "stop": [""]}, "stop is a list"),
        ({"prompts": [[5.5]]}, "a prompt is a text or a list of token ids"),
        ({"prompts": "x", "adapter": {"a": "x"}}, "a mixture has names and their weights"),
        ({"prompts": "x", "sampling": 42}, "sampling cannot be 42"),
        ({"prompts": "x", "task_id": "0"}, "task_id is a whole number"),
        ({"prompts": "half \ud800 a pair"}, "not valid Unicode"),
    ],
)
def test_what_is_wrong_is_said_and_leaves_nothing_behind(llm: LLM, options: Any, message: str | None) -> None:
    if message is None:
        assert llm.generate(**options) == []
        return
    with pytest.raises(ValueError, match=message):
        llm.generate(**options)
    assert not llm.engine.has_work()
    llm.engine.check_integrity()


def test_it_may_be_called_where_an_event_loop_runs(world: World, llm: LLM) -> None:
    async def cell() -> list[Completion]:
        return llm.generate(PROMPTS[0], adapter="a", sampling=GREEDY)

    assert texts(asyncio.run(cell())) == [world.text(PROMPTS[0], a=1.0)]
