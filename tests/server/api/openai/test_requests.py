"""Every field of vLLM's two requests is served, refused by its name, or changes nothing; the same as the table in the
documentation.
"""

import json
from pathlib import Path

import pytest

from peftserve.server.api.openai.chat_request import CHAT_NEUTRAL_VALUES
from peftserve.server.api.openai.requests import NEUTRAL_VALUES

BODIES = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 4},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = {
    "watermarking": True,
    "spaces_between_special_tokens": False,
    "logprob_token_ids": [5],
    "repetition_detection": {"max_pattern_size": 4, "min_count": 3},
    "thinking_token_budget": 8,
    "routed_experts_prompt_start": 2,
    "kv_transfer_params": {"a": 1},
    "ec_transfer_params": {"a": 1},
    "vllm_xargs": {"a": 1},
    "mm_processor_kwargs": {"a": 1},
    "media_io_kwargs": {"image": {}},
    "use_beam_search": True,
    "length_penalty": 0.5,
    "allowed_token_ids": [5],
    "bad_words": ["no"],
    "suffix": "end",
    "prompt_embeds": "AAAA",
    "verbosity": "low",
    "min_new_tokens": 1,
    "max_new_tokens": 8,
    "n_predict": 8,
    "options": {"temperature": 0},
    "mirostat": 2,
    "typical_p": 0.5,
}
IGNORED = {  # nothing of the answer is other for them
    "session_id": "s",
    "stream_interval": 4,
    "return_token_offsets": True,
    "return_mm_kwargs": False,
    "service_tier": "auto",
    "store": False,
    "metadata": {"a": "b"},
    "safety_identifier": "x",
    "prompt_cache_key": "x",
}


@pytest.mark.parametrize("path", BODIES)
async def test_fields_that_are_not_served_are_refused_by_name(server, engine, check_envelope, path):
    own = dict.fromkeys(CHAT_NEUTRAL_VALUES, True) if path == CHAT else {}
    for name, value in {**ASKED, **own}.items():
        error = check_envelope(await server.http.post(path, json={**BODIES[path], name: value}), 400)
        assert error["param"] == name
        assert name in error["message"]
    assert engine.requests == []
    neutral = {name: values[-1] for name, values in NEUTRAL_VALUES.items() if name in ASKED}
    response = await server.http.post(path, json={**BODIES[path], **neutral, **IGNORED})
    assert response.status_code == 200, response.text


def test_the_documentation_has_each_of_them():
    page = (Path(__file__).parents[4] / "docs" / "request-fields.md").read_text(encoding="utf-8")
    missing = [name for name in {**ASKED, **IGNORED, **CHAT_NEUTRAL_VALUES} if f"`{name}`" not in page]
    assert missing == []


@pytest.mark.parametrize("path", BODIES)
async def test_the_queue_and_the_id_are_the_requests_own(server, engine, check_envelope, path):
    headers = {"OpenAI-Organization": "org-1", "OpenAI-Project": "proj-1"}
    body = {**BODIES[path], "priority": -7, "request_id": "mine", "n": 2}
    answer = (await server.http.post(path, json=body, headers=headers)).json()
    assert answer["id"].endswith("-mine")
    assert [request.priority for request in engine.requests] == [-7, -7]
    for fields, param in (
        ({"priority": "soon"}, "priority"),
        ({"priority": 1 << 63}, "priority"),
        ({"request_id": ""}, "request_id"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "x" * 1025}, "cache_salt"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 125}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 0}, "prompt"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ):
        assert check_envelope(await server.http.post(path, json={**body, **fields}), 400)["param"] == param


async def test_prompts_are_cut_to_their_last_tokens_or_first(server, engine):
    ids = [i % 250 for i in range(300)]
    for fields, expected in (
        ({"truncate_prompt_tokens": 5}, ids[-5:]),
        ({"truncate_prompt_tokens": 5, "truncation_side": "right"}, ids[:5]),
        ({"truncate_prompt_tokens": -1, "max_tokens": 28}, ids[-100:]),
        ({"truncate_prompt_tokens": -1}, ids[-112:]),
    ):
        answer = await server.http.post(TEXT, json={"prompt": ids, **fields})
        assert answer.status_code == 200, answer.text
        assert engine.requests[-1].prompt_token_ids == expected
        assert answer.json()["usage"]["prompt_tokens"] == len(expected)
    text = "the quick brown fox " * 100
    chat = {"messages": [{"role": "user", "content": text}], "truncate_prompt_tokens": 20, "max_tokens": 2}
    assert (await server.http.post(CHAT, json=chat)).json()["usage"]["prompt_tokens"] == 20


def _events(text):
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("path", BODIES)
async def test_streams_tell_usage_and_token_ids_as_they_go(server, engine, path):
    usage = {"include_usage": True, "continuous_usage_stats": True}
    body = {**BODIES[path], "stream": True, "stream_options": usage, "return_token_ids": True}
    events = _events((await server.http.post(path, json=body)).text)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-2:] == [4, 4]
    assert {event["usage"]["prompt_tokens"] for event in events} == {len(engine.requests[0].prompt_token_ids)}
    told = [event.get("prompt_token_ids", (event["choices"] or [{}])[0].get("prompt_token_ids")) for event in events]
    assert told == [engine.requests[0].prompt_token_ids] + [None] * (len(events) - 1)
    assert sum(len(choice.get("token_ids", [])) for event in events for choice in event["choices"]) == 4
    plain = _events((await server.http.post(path, json={**body, "stream_options": {"include_usage": True}})).text)
    assert [event["usage"] is None for event in plain] == [True] * (len(plain) - 1) + [False]


async def test_logprobs_name_tokens_by_their_ids(server):
    body = {"prompt": [100, 101], "max_tokens": 2, "logprobs": 1, "return_tokens_as_token_ids": True}
    logprobs = (await server.http.post(TEXT, json=body)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:100", "token_id:101"]
    assert [list(top) for top in logprobs["top_logprobs"]] == [["token_id:100"], ["token_id:101"]]
    body = {**BODIES[CHAT], "logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    for entry in (await server.http.post(CHAT, json=body)).json()["choices"][0]["logprobs"]["content"]:
        assert entry["token"].startswith("token_id:")
        assert bytes(entry["bytes"]).decode() == entry["token"] == entry["top_logprobs"][0]["token"]


async def test_what_a_request_leaves_out_is_the_models_own(server, engine, model_info, tokenizer):
    defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "max_tokens": 7}
    engine.info = model_info(
        tokenizer=tokenizer.to_str(), chat_template=engine.info.chat_template, sampling_defaults=defaults
    )
    for path, most in ((TEXT, 16), (CHAT, 7)):
        body = {name: value for name, value in BODIES[path].items() if name != "max_tokens"}
        await server.http.post(path, json=body)
        got = engine.requests[-1].sampling
        assert (got.temperature, got.top_p, got.top_k, got.repetition_penalty) == (0.6, 0.9, 20, 1.1)
        assert got.max_tokens == most
        assert isinstance(got.top_k, int)
        await server.http.post(path, json={**body, "temperature": 0, "top_k": -1, "max_completion_tokens": 9})
        got = engine.requests[-1].sampling
        assert (got.temperature, got.top_p, got.top_k, got.max_tokens) == (0.0, 0.9, 0, 9)
