"""Vectors over HTTP, of an engine whose vector of a prompt counts its tokens."""

import asyncio
import base64

import numpy as np

VECTOR_WIDTH = 16
TEXTS = ["the quick", "brown fox", "the the the"]


def counted(ids, normalize=True):
    counts = np.bincount([i % VECTOR_WIDTH for i in ids], minlength=VECTOR_WIDTH).astype(np.float32)
    return counts / np.linalg.norm(counts) if normalize else counts


async def post(server, **body):
    return await server.http.post("/v1/embeddings", json=body)


async def test_the_official_client_gets_the_vector_of_each_input(server, engine, tokenizer):
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    for given, expected in ((TEXTS, ids), (TEXTS[0], ids[:1]), (ids[1], ids[1:2]), (ids[:2], ids[:2])):
        for fields in ({}, {"encoding_format": "float"}):  # the client's own default is base64
            answer = await server.openai.embeddings.create(model="base", input=given, user="me", **fields)
            assert [item.index for item in answer.data] == list(range(len(expected)))
            for item, tokens in zip(answer.data, expected, strict=True):
                np.testing.assert_allclose(item.embedding, counted(tokens), atol=1e-6)
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, expected))
            assert (answer.model, answer.object, answer.data[0].object) == ("base", "list", "embedding")
    assert {request.pooling.kind for request in engine.requests} == {"last"}
    assert {request.sampling.max_tokens for request in engine.requests} == {0}
    assert server.services.admission.in_flight == 0


async def test_fields_say_how_the_states_are_pooled_and_sent(server, engine, tokenizer):
    ids = tokenizer.encode(TEXTS[2]).ids
    whole = counted(ids, normalize=False)
    for fields in ({"normalize": False}, {"use_activation": False}, {"normalize": False, "pooling": "MEAN"}):
        answer = (await post(server, input=TEXTS[2], dimensions=VECTOR_WIDTH, **fields)).json()
        np.testing.assert_allclose(answer["data"][0]["embedding"], whole)
    assert engine.requests[-1].pooling.kind == "mean"
    answer = (await post(server, input=ids, encoding_format="base64", normalize=False)).json()
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4"), whole)
    fields = {"truncate_prompt_tokens": 2, "priority": -4, "cache_salt": "mine", "request_id": "abc"}
    response = await post(server, input=TEXTS[0], **fields)
    assert response.json()["id"] == "embd-abc"
    assert response.headers["x-peftserve-adapter"] == "base"
    request = engine.requests[-1]
    assert request.prompt_token_ids == tokenizer.encode(TEXTS[0]).ids[-2:]
    assert (request.priority, request.salt) == (-4, "0:mine")
    await post(server, input=TEXTS[0], truncate_prompt_tokens=3, truncation_side="right")
    assert engine.requests[-1].prompt_token_ids == tokenizer.encode(TEXTS[0]).ids[:3]
    await post(server, input="x" * 5000, truncate_prompt_tokens=-1)
    assert len(engine.requests[-1].prompt_token_ids) == 128
    await post(server, messages=[{"role": "user", "content": "hi"}])
    assert tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False) == "<s>user: hi\n"


async def test_adapters_and_mixtures_answer_and_are_named(server, engine):
    await server.upload("sql")
    await server.upload("json", width=6)
    response = await post(server, model="sql", input=TEXTS)
    assert (response.headers["x-peftserve-adapter"], response.json()["model"]) == ("sql@1", "sql")
    assert len(engine.requests[-1].adapters) == 1
    mixture = [{"name": "sql", "weight": 0.7}, {"name": "json", "weight": -0.3}]
    response = await post(server, adapters=mixture, input=TEXTS[0])
    assert sorted(adapter.weight for adapter in engine.requests[-1].adapters) == [-0.3, 0.7]
    assert "sql@1" in response.headers["x-peftserve-adapter"]
    assert not server.services.adapters.leases.counts()


REFUSED = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": ""}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": ["a", 3]}, "input"),
    ({"input": [9999]}, "input"),
    ({"input": "a", "messages": [{"role": "user", "content": "hi"}]}, "input"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": [5] * 129}, "input"),
    ({"input": "x" * 5000}, "input"),
    ({"input": "a", "dimensions": 8}, "dimensions"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ({"input": "a", "pooling": "cls"}, "pooling"),
    ({"input": "a", "normalize": True, "use_activation": False}, "use_activation"),
    ({"input": "a", "truncate_prompt_tokens": 129}, "truncate_prompt_tokens"),
    ({"input": "a", "embed_dtype": "float16"}, "embed_dtype"),
    ({"input": "a", "padding": "max_length"}, "padding"),
    ({"input": "a", "priority": 1 << 63}, "priority"),
]


async def test_what_cannot_be_served_is_refused_by_name(server, engine, check_envelope):
    for body, param in REFUSED:
        assert check_envelope(await post(server, **body), 400)["param"] == param
    assert check_envelope(await post(server, input="a", model="nobody"), 404, "model_not_found")["param"] == "model"
    assert engine.requests == []


async def test_many_inputs_run_a_bounded_number_at_once(make_server, engine):
    engine.delay = 0.002
    async with make_server(max_queue=124) as server:
        task = asyncio.create_task(post(server, input=[[i % 256] for i in range(300)], normalize=False))
        most = 0
        while not task.done():
            most = max(most, len(engine.running))
            await asyncio.sleep(0)
        vectors = [item["embedding"] for item in (await task).json()["data"]]
    assert most == 64
    assert [vector.index(1.0) for vector in vectors] == [i % 256 % VECTOR_WIDTH for i in range(300)]


async def test_a_failure_or_a_client_that_leaves_ends_all(server, engine, until, check_envelope):
    engine.delay = 30
    request = asyncio.create_task(post(server, input=TEXTS))
    await until(lambda: len(engine.running) == 3)
    request.cancel()
    await until(lambda: len(engine.aborted) == 3 and server.services.admission.in_flight == 0)
    engine.delay, engine.error = 0, "too hot"
    check_envelope(await post(server, input=TEXTS), 400, "sequence_failed")
    assert server.services.admission.in_flight == 0
    engine.error = None
    engine.die()
    check_envelope(await post(server, input=TEXTS), 503, "engine_dead")


async def test_a_full_queue_and_a_model_without_states_say_so(server, engine, model_info, tokenizer, check_envelope):
    server.services.admission.enter(14)
    check_envelope(await post(server, input=TEXTS), 429, "queue_full")
    server.services.admission.leave(14)
    engine.info = model_info(tokenizer=tokenizer.to_str(), hidden_size=0)
    assert "hidden states" in check_envelope(await post(server, input=TEXTS), 400)["message"]
