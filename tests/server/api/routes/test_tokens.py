"""The tokenizer's routes, as lm-eval's remote tokenizer asks them."""


async def test_a_remote_tokenizer_scores_a_text_in_rolling_windows(server, engine, tokenizer):
    """The calls that lm-eval makes with `tokenizer_backend=remote`, and what it makes of the answers."""
    info = (await server.http.get("/tokenizer_info")).json()
    assert {"bos_token", "eos_token", "chat_template"} <= info.keys()

    async def encode(text):
        body = {"prompt": text, "add_special_tokens": False}
        return (await server.http.post("/tokenize", json=body)).json()["tokens"]

    prefix = (await encode(info["bos_token"]))[0] or (await encode(info["eos_token"]))[0]
    tokens = await encode("the quick brown fox " * 4)
    assert (await server.http.post("/detokenize", json={"tokens": tokens})).json()[
        "prompt"
    ] == "the quick brown fox " * 4
    window = [prefix, *tokens]
    body = {
        "model": "base",
        "prompt": [window],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1,
        "echo": True,
    }
    response = await server.http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    scores = choice["logprobs"]["token_logprobs"][1:-1]
    assert len(scores) == len(tokens)
    assert all(isinstance(score, float) for score in scores)
    assert len(choice["logprobs"]["top_logprobs"][1:-1]) == len(tokens)


async def test_a_tokenizer_that_names_no_end_has_the_models(server, engine, model_info, tokenizer):
    engine.info = model_info(tokenizer=tokenizer.to_str())
    info = (await server.http.get("/tokenizer_info")).json()
    assert (info["bos_token"], info["eos_token"], info["special_tokens"]) == (None, "</s>", {})


async def test_messages_with_tools_have_the_tokens_of_a_chat(server, engine, model_info, tokenizer, check_envelope):
    template = engine.info.chat_template
    engine.info = model_info(tokenizer=tokenizer.to_str(), chat_template=template, max_model_len=4096)
    tool = {"type": "function", "function": {"name": "now", "description": "Tells the time."}}
    for fields in ({}, {"tools": [tool]}, {"tools": [tool], "tool_choice": "none"}):
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        counted = (await server.http.post("/tokenize", json=body)).json()["count"]
        answer = (await server.http.post("/v1/chat/completions", json={**body, "max_tokens": 1})).json()
        assert counted == answer["usage"]["prompt_tokens"]
    refused = await server.http.post("/tokenize", json={"prompt": "hi", "tools": [tool]})
    assert "tools are for messages" in check_envelope(refused, 400)["message"]
