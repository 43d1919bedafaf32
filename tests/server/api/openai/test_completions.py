import asyncio

import openai
import pytest


async def _create(server, **fields):
    fields = {"model": "base", "prompt": "the quick brown fox", "max_tokens": 64, **fields}
    return await server.openai.completions.create(**fields)


def _n_tokens(tokenizer, text):
    return len(tokenizer.encode(text).ids)


async def test_a_prompt_is_answered_in_openais_form(server, tokenizer):
    prompt = "the quick brown fox"
    count = _n_tokens(tokenizer, prompt)
    answer = await _create(server, max_tokens=count)
    assert answer.object == "text_completion"
    assert answer.model == "base"
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, prompt, "length", None)
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens == count
    assert answer.usage.total_tokens == 2 * count
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_sixteen_tokens_are_the_default_and_less_where_less_fits(server):
    body = {"prompt": [5] * 20}
    answer = (await server.http.post("/v1/completions", json=body)).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
    answer = (await server.http.post("/v1/completions", json={"prompt": [5] * 120})).json()
    assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["ab", "cd"], ["ab", "cd"]),
        ([100, 101], None),
        ([[100, 101], [102, 103]], None),
    ],
)
async def test_every_form_of_prompt(server, prompt, texts):
    answer = await _create(server, prompt=prompt, max_tokens=2)
    expected = len(prompt) if isinstance(prompt[0], list | str) else 1
    assert [choice.index for choice in answer.choices] == list(range(expected))
    if texts is not None:
        assert [choice.text for choice in answer.choices] == texts


async def test_n_answers_take_the_seeds_behind_the_requests_own(server, engine):
    answer = await _create(server, prompt=["abc", "xyz"], max_tokens=3, n=3, seed=1)
    assert [choice.text for choice in answer.choices] == ["bca", "cab", "abc", "yzx", "zxy", "xyz"]
    assert sorted(request.sampling.seed for request in engine.requests) == [1, 1, 2, 2, 3, 3]
    assert answer.usage.prompt_tokens == 6
    assert answer.usage.completion_tokens == 18


async def test_best_of_returns_the_likeliest(server):
    answer = await _create(server, prompt="abcd", max_tokens=2, n=2, seed=0, extra_body={"best_of": 4})
    assert [choice.text for choice in answer.choices] == ["ab", "bc"]
    assert [choice.logprobs for choice in answer.choices] == [None, None]
    assert answer.usage.completion_tokens == 8


async def test_a_stream_says_what_the_whole_says(server):
    whole = await _create(server, n=2, seed=3, max_tokens=12, prompt="héllo wörld 😀!")
    texts, reasons = ["", ""], [None, None]
    stream = await _create(
        server,
        n=2,
        seed=3,
        max_tokens=12,
        prompt="héllo wörld 😀!",
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == ["length", "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("include", "text"), [(False, "the qui"), (True, "the quick")])
async def test_a_stop_string_cuts_the_text_and_frees_the_sequence(server, engine, stream, include, text, until):
    engine.delay = 0.001
    body = {"include_stop_str_in_output": include}
    answer = await _create(server, stop=["zzz", "ck"], stream=stream, extra_body=body)
    if stream:
        pieces = [chunk.choices[0] async for chunk in answer]
        got = "".join(piece.text for piece in pieces)
        last = pieces[-1]
    else:
        got, last = answer.choices[0].text, answer.choices[0]
    assert got == text
    assert last.finish_reason == "stop"
    assert last.stop_reason == "ck"
    await until(lambda: len(engine.aborted) == 1)
    assert engine.running == {}


async def test_the_end_of_sequence_is_not_shown(server, tokenizer):
    ids = [*tokenizer.encode("abc").ids, 1]
    answer = await _create(server, prompt=ids)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("abc", "stop", None)
    named = await _create(server, prompt=ids, extra_body={"ignore_eos": True, "stop_token_ids": [1]})
    assert (named.choices[0].finish_reason, named.choices[0].stop_reason) == ("stop", 1)
    assert answer.usage.completion_tokens == len(ids)
    answer = await _create(server, prompt=ids, extra_body={"include_stop_str_in_output": True})
    assert answer.choices[0].text == "abc"  # special tokens are skipped unless asked for
    shown = {"include_stop_str_in_output": True, "skip_special_tokens": False}
    assert (await _create(server, prompt=ids, extra_body=shown)).choices[0].text == "abc</s>"


async def test_logprobs_name_tokens_and_their_places(server):
    answer = await _create(server, prompt="abc", max_tokens=3, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["a", "b", "c"]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert [list(top) for top in logprobs.top_logprobs] == [["a", "b"], ["b", "c"], ["c", "d"]]


async def test_streamed_logprobs_are_the_whole_ones(server):
    fields = {"prompt": "a😀bé", "max_tokens": 12, "logprobs": 1, "stop": ["zz"]}
    whole = (await _create(server, **fields)).choices[0].logprobs
    tokens, offsets = [], []
    async for chunk in await _create(server, stream=True, **fields):
        tokens += chunk.choices[0].logprobs.tokens
        offsets += chunk.choices[0].logprobs.text_offset
    assert tokens == whole.tokens
    assert offsets == whole.text_offset
    assert any(token.startswith("bytes:\\xf0") for token in tokens)


async def test_logprobs_end_where_the_text_ends(server):
    answer = await _create(server, prompt="abcdef", max_tokens=6, logprobs=0, stop="de")
    assert answer.choices[0].text == "abc"
    assert answer.choices[0].logprobs.tokens == ["a", "b", "c"]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_in_front_with_its_logprobs(server, stream):
    answer = await _create(server, prompt="abc", max_tokens=2, echo=True, logprobs=1, stream=stream)
    if stream:
        text, tokens, offsets, values = "", [], [], []
        async for chunk in answer:
            text += chunk.choices[0].text
            tokens += chunk.choices[0].logprobs.tokens
            offsets += chunk.choices[0].logprobs.text_offset
            values += chunk.choices[0].logprobs.token_logprobs
    else:
        (choice,) = answer.choices
        text, tokens, offsets = choice.text, choice.logprobs.tokens, choice.logprobs.text_offset
        values = choice.logprobs.token_logprobs
    assert text == "abcab"
    assert tokens == ["a", "b", "c", "a", "b"]
    assert offsets == [0, 1, 2, 3, 4]
    assert values == [None, -0.5, -0.5, -0.5, -0.5]


async def test_a_prompt_can_be_scored_without_an_answer(server):
    answer = await _create(server, prompt="abc", max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].text == "abc"
    assert answer.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5]
    assert answer.usage.completion_tokens == 0


async def test_prompt_logprobs_in_vllms_form(server):
    answer = await _create(server, prompt=[100, 101], max_tokens=1, extra_body={"prompt_logprobs": 1})
    first, second = answer.choices[0].prompt_logprobs
    assert first is None
    assert second["101"]["rank"] == 1


async def test_token_ids_on_demand(server):
    answer = await _create(server, prompt=[100, 101], max_tokens=3, extra_body={"return_token_ids": True})
    assert answer.choices[0].token_ids == [100, 101, 100]
    assert answer.choices[0].prompt_token_ids == [100, 101]


async def test_sampling_fields_reach_the_engine(server, engine):
    extra = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "stop_token_ids": [300],
        "min_tokens": 2,
        "ignore_eos": True,
        "cache_salt": "tenant",
    }
    await _create(
        server,
        max_tokens=4,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.25,
        frequency_penalty=-0.25,
        logit_bias={"17": -100},
        seed=-1,
        extra_body=extra,
    )
    (request,) = engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.25, -0.25, 1.2)
    assert sampling.logit_bias == {17: -100.0}
    assert sampling.seed == (1 << 63) - 1
    assert (sampling.stop_token_ids, sampling.min_tokens, sampling.ignore_eos) == ([300], 2, True)
    assert request.salt == "0:tenant"
    await _create(server, extra_body={"top_k": -1})
    assert engine.requests[-1].sampling.top_k == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_sequences(server, engine, stream, until):
    engine.delay = 60
    body = {"prompt": "abc", "max_tokens": 100, "n": 3, "stream": stream}
    request = asyncio.create_task(server.http.post("/v1/completions", json=body))
    await until(lambda: len(engine.running) == 3)
    request.cancel()
    await until(lambda: not engine.running)
    assert len(engine.aborted) == 3
    await until(lambda: server.services.admission.in_flight == 0)
    assert 'outcome="aborted"} 1.0' in (await server.http.get("/metrics")).text


async def test_a_dead_engine_fails_open_and_new_requests(server, engine, until, check_envelope):
    engine.delay = 0.02
    body = {"prompt": "abc", "max_tokens": 100}
    whole = asyncio.create_task(server.http.post("/v1/completions", json=body))
    async with server.http.stream("POST", "/v1/completions", json={**body, "stream": True, "n": 2}) as stream:
        engine.going.clear()
        late = asyncio.create_task(server.http.post("/v1/completions", json={**body, "stream": True}))
        await until(lambda: len(engine.running) == 4)
        engine.die()
        async with asyncio.timeout(60):
            assert check_envelope(await whole, 503, "engine_dead")
            await late
            text = (await stream.aread()).decode()
    assert '"code":"engine_dead"' in text
    assert "/secret" not in text
    assert text.endswith("data: [DONE]\n\n")
    response = await server.http.post("/v1/completions", json=body)
    check_envelope(response, 503, "engine_dead")
    assert int(response.headers["retry-after"]) > 0
    check_envelope(await server.http.get("/health/ready"), 503)
    assert server.services.admission.in_flight == 0


async def test_a_sequence_that_fails_is_an_error_for_its_request_only(server, engine, check_envelope):
    engine.error = "the adapter does not fit"
    response = await server.http.post("/v1/completions", json={"prompt": "abc"})
    assert check_envelope(response, 400, "sequence_failed")["message"] == "the adapter does not fit"
    with pytest.raises(openai.BadRequestError, match="does not fit"):  # no stream has begun: it is an answer of its own
        await _create(server, stream=True, n=2)
    engine.error = None
    assert (await _create(server, prompt="abc", max_tokens=3)).choices[0].text == "abc"


FAULTS = [
    ("AdapterDamaged", 503, "adapter_damaged"),
    ("AdapterFailed", 500, "adapter_failed"),
    ("NoMemoryForAdapter", 503, "out_of_memory"),
    ("StepFailed", 500, "step_failed"),
    ("InvalidLogits", 500, "invalid_logits"),
    ("OutOfMemory", 503, "out_of_memory"),
    ("of another release", 500, "internal_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize(("kind", "status", "code"), FAULTS)
async def test_a_fault_of_the_server_is_none_of_the_request(
    server, engine, check_envelope, path, stream, kind, status, code
):
    engine.error, engine.error_kind = "it could not be done", kind
    body = {"prompt": "abc", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    response = await server.http.post(f"/v1/{path}", json=body)
    error = check_envelope(response, status, code)
    assert (error["message"], error["type"]) == ("it could not be done", "server_error")
    assert ("retry-after" in response.headers) == (status == 503)
    assert server.services.admission.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_who_waited_too_long_is_told_when_as_many_places_come_free(
    server, engine, check_envelope, monkeypatch, stream
):
    monkeypatch.setattr(server.services.admission, "seconds_until", lambda places: 17 * places)
    engine.error, engine.error_kind = "it waited 2.5 seconds", "QueueTimeout"
    response = await server.http.post("/v1/completions", json={"prompt": "abc", "n": 2, "stream": stream})
    assert check_envelope(response, 429, "queue_timeout")["type"] == "rate_limit_error"
    assert response.headers["retry-after"] == "34"


async def test_a_full_queue_says_when_to_come_back(server, engine, until, check_envelope):
    engine.delay = 60
    body = {"prompt": "abc", "max_tokens": 100, "n": 16}
    running = asyncio.create_task(server.http.post("/v1/completions", json=body))
    await until(lambda: len(engine.running) == 16)
    response = await server.http.post("/v1/completions", json={"prompt": "abc"})
    check_envelope(response, 429, "queue_full")
    assert response.headers["retry-after"] == "1"
    running.cancel()
    await until(lambda: not engine.running)
    check_envelope(await server.http.post("/v1/completions", json={**body, "n": 17}), 400)


async def test_draining_refuses_new_requests_and_lets_old_ones_finish(server, engine, until, check_envelope):
    engine.delay = 0.01
    old = asyncio.create_task(server.http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 20}))
    await until(lambda: engine.running)
    server.services.admission.drain()
    response = await server.http.post("/v1/completions", json={"prompt": "abc"})
    check_envelope(response, 503, "shutting_down")
    assert "retry-after" in response.headers
    check_envelope(await server.http.get("/health/ready"), 503, "shutting_down")
    assert (await server.http.get("/health/live")).status_code == 200
    assert (await old).status_code == 200
    await asyncio.wait_for(server.services.admission.idle(), 60)
