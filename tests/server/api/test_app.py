"""What holds for every route: envelopes, keys, limits, health, and never a 5xx."""

import json
import subprocess
import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

POSTS = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/tokenize",
    "/detokenize",
    "/v1/adapters",
]

COMPLETION_FAULTS = {
    "{": None,
    "[]": None,
    "null": None,
    '{"prompt": "\\ud800"}': None,
    "[" * 5000: None,
    '{"prompt": NaN}': None,
    '{"prompt": "a", "temperature": NaN}': "temperature",
    '{"prompt": "a", "temperature": Infinity}': "temperature",
    '{"prompt": "a", "temperature": 1e999}': "temperature",
    '{"prompt": "a", "seed": ' + "9" * 5000 + "}": None,
    '{"prompt": "a", "seed": 9223372036854775808}': "seed",
    '{"prompt": "a", "max_tokens": 0}': None,
    '{"prompt": "a", "max_tokens": -1}': "max_tokens",
    '{"prompt": "a", "max_tokens": 1000}': "prompt",
    '{"prompt": "a", "max_tokens": "many"}': "max_tokens",
    '{"prompt": "a", "n": 0}': "n",
    '{"prompt": "a", "n": 129}': "n",
    '{"prompt": "a", "n": 17}': None,
    '{"prompt": "a", "n": 2, "best_of": 1}': None,
    '{"prompt": "a", "best_of": 2, "stream": true}': None,
    '{"prompt": "a", "logprobs": 21}': "logprobs",
    '{"prompt": "a", "top_p": 0}': "top_p",
    '{"prompt": "a", "top_k": -2}': "top_k",
    '{"prompt": "a", "min_p": 1.5}': "min_p",
    '{"prompt": "a", "repetition_penalty": 0}': "repetition_penalty",
    '{"prompt": "a", "presence_penalty": 3}': "presence_penalty",
    '{"prompt": "a", "logit_bias": {"x": 1}}': None,
    '{"prompt": "a", "logit_bias": {"400": 1}}': "logit_bias",
    '{"prompt": "a", "logit_bias": {"4": 101}}': None,
    '{"prompt": "a", "stop": [""]}': "stop.0",
    '{"prompt": "a", "stop": [1]}': "stop.0",
    json.dumps({"prompt": "a", "stop": ["x"] * 17}): "stop",
    '{"prompt": "a", "stop_token_ids": [400]}': "stop_token_ids",
    '{"prompt": "a", "stop_token_ids": [-1]}': "stop_token_ids.0",
    '{"prompt": "a", "min_tokens": 17}': "min_tokens",
    '{"prompt": "a", "stream_options": {"include_usage": true}}': None,
    '{"prompt": "a", "suffix": "b"}': None,
    '{"prompt": "a", "guided_json": {}, "use_beam_search": true}': None,
    '{"prompt": "a", "adapters": []}': "adapters",
    '{"prompt": "a", "adapters": [{"name": "x", "weight": NaN}]}': "adapters.0.weight",
    '{"prompt": ""}': "prompt",
    '{"prompt": []}': "prompt",
    '{"prompt": [[]]}': "prompt",
    '{"prompt": [1, "a"]}': "prompt",
    '{"prompt": [1.5]}': "prompt",
    '{"prompt": [true]}': "prompt",
    '{"prompt": [400]}': "prompt",
    '{"prompt": [-1]}': "prompt",
    '{"prompt": [18446744073709551616]}': "prompt",
    '{"prompt": {"a": 1}}': "prompt",
    json.dumps({"prompt": ["a"] * 1025}): "prompt",
    json.dumps({"prompt": [5] * 128}): "prompt",
    "{}": "prompt",
}


async def test_a_faulty_completion_is_a_400_that_names_the_field(server, engine, check_envelope):
    for body, param in COMPLETION_FAULTS.items():
        error = check_envelope(await server.http.post("/v1/completions", content=body.encode()), 400)
        assert param is None or error["param"] == param, body
        assert engine.requests == [], body


async def test_too_long_a_prompt_has_openais_code_and_the_numbers(server, check_envelope):
    response = await server.http.post("/v1/completions", json={"prompt": [5] * 120, "max_tokens": 9})
    message = check_envelope(response, 400, "context_length_exceeded")["message"]
    assert "maximum context length is 128 tokens" in message
    assert "129 tokens (120 in the prompt, 9 in the completion)" in message


async def test_a_million_faults_are_one_error(server, check_envelope):
    tokens = b'{"tokens": [' + b",".join([b'"a"'] * 1_000_000) + b"]}"
    assert len((await server.http.post("/detokenize", content=tokens)).text) < 500
    biases = b",".join(b'"%d": "x"' % i for i in range(100_000))
    response = await server.http.post("/v1/completions", content=b'{"prompt": "a", "logit_bias": {' + biases + b"}}")
    assert "at most 1024 entries" in check_envelope(response, 400)["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = """
prompt messages model adapters n stop logprobs top_logprobs stream stream_options seed logit_bias best_of echo tools
stop_token_ids max_tokens response_format lora_name lora_path tokens name source min_tokens chat_template_kwargs
temperature
"""
FIELDS = st.sampled_from(NAMES.split())
GOOD_FIELDS = {
    "prompt": "abc",
    "messages": [{"role": "user", "content": "hi"}],
    "tokens": [5],
    "max_tokens": 3,
    "lora_name": "x",
    "lora_path": "/x",
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(POSTS), fields=st.dictionaries(FIELDS, JSON, max_size=4), raw=st.none() | st.binary())
async def test_nothing_that_a_client_sends_makes_a_5xx(server, path, fields, raw):
    body = json.dumps({**GOOD_FIELDS, **fields}).encode() if raw is None else raw
    response = await server.http.post(path, content=body)
    assert response.status_code in (200, 400, 404), (response.text, body)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


REFUSALS = [
    ("GET", "/nowhere", 404),
    ("GET", "/v1/nowhere", 404),
    ("GET", "/v1/completions", 405),
    ("DELETE", "/v1/models", 405),
    ("GET", "/v1/models/a/b/c", 404),
    ("GET", "/v1/models/", 404),
    ("GET", "/v1/adapters/no%20name", 404),
    ("GET", "/v1/adapters/..%2f..%2fetc", 404),
    ("DELETE", "/v1/adapters/nobody@0", 404),
    ("GET", "/v1/adapters?limit=0", 400),
    ("GET", "/v1/adapters?limit=x", 400),
]


async def test_every_refusal_is_the_envelope(server, check_envelope):
    for method, path, status in REFUSALS:
        check_envelope(await server.http.request(method, path), status)


async def test_our_own_mistakes_are_a_500_without_their_insides(server, engine, check_envelope, monkeypatch):
    monkeypatch.setattr(engine, "submit", lambda request, sink: 1 / 0)
    response = await server.http.post("/v1/completions", json={"prompt": "abc"})
    message = check_envelope(response, 500, "internal_error")["message"]
    assert "division" not in message
    stream = await server.http.post("/v1/completions", json={"prompt": "abc", "stream": True})
    assert "internal_error" in stream.text
    assert "division" not in stream.text
    assert server.services.admission.in_flight == 0


async def test_bodies_are_limited_whether_or_not_they_say_their_length(make_server, check_envelope):
    async with make_server(body_limit=1000) as server:
        check_envelope(await server.http.post("/v1/completions", content=b"x" * 1001), 413, "body_too_large")

        async def pieces():
            for _ in range(100):
                yield b"x" * 100

        check_envelope(await server.http.post("/v1/completions", content=pieces()), 413, "body_too_large")
        body = json.dumps({"prompt": "abc"}).encode()
        assert (await server.http.post("/v1/completions", content=body)).status_code == 200


async def test_what_goes_to_disk_is_told_by_the_type_of_the_body_alone(make_server, adapter_bytes, check_envelope):
    async with make_server(body_limit=1000) as server:
        http, files = server.http, [("files", file) for file in adapter_bytes(rank=64).items()]
        whole = http.build_request("POST", "/v1/adapters", data={"name": "sql"}, files=files)
        body, form = whole.read(), whole.headers["content-type"]
        assert len(body) > 2000
        for kind in (f"application/json; x={form}", f"x-{form}"):
            answer = await http.post("/v1/adapters", content=body, headers={"content-type": kind})
            check_envelope(answer, 413, "body_too_large")
        named = {"content-type": form.replace("multipart/form-data", "Multipart/Form-Data ")}
        assert (await http.post("/v1/adapters", content=body, headers=named)).status_code == 201


async def test_keys_guard_everything_but_health_and_metrics(make_server, engine, check_envelope):
    async with make_server(api_keys=("alpha", "bêta", "voilà")) as server:
        for headers in ({}, {"authorization": "Bearer gamma"}, {"authorization": "Basic alpha"}):
            for path in ("/v1/models", "/v1/nowhere", "/v1/adapters", "/tokenizer_info"):
                response = await server.http.get(path, headers=headers)
                check_envelope(response, 401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
            for path in ("/tokenize", "/detokenize", "/v1/completions", "/v1/adapters", "/v1/load_lora_adapter"):
                check_envelope(await server.http.post(path, json={}, headers=headers), 401)
        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            assert (await server.http.get(path)).status_code == 200
        for key in ("alpha", "bêta", "voilà"):
            body = {"prompt": "abc"}
            headers = {"authorization": f"Bearer {key}".encode()}
            assert (await server.http.post("/v1/completions", json=body, headers=headers)).status_code == 200
        first, second, _ = engine.requests
        assert first.salt
        assert first.salt != second.salt
        assert "alpha" not in first.salt


async def test_a_salt_of_ones_own_reaches_nobody_elses_pages(make_server, engine, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("".join(f'[[keys]]\nname = "{name}"\nkey = "{name}"\n' for name in ("team", "team2", "1:team")))
    async with make_server(api_key_file=keys) as server:
        for name, salt in (("team2", None), ("team", "2"), ("team", None), ("1:team", "2"), ("1:team", None)):
            body = {"prompt": "abc", **({"cache_salt": salt} if salt else {})}
            headers = {"authorization": f"Bearer {name}"}
            assert (await server.http.post("/v1/completions", json=body, headers=headers)).status_code == 200
        assert len({request.salt for request in engine.requests}) == 5


async def test_health_while_the_model_loads(make_server, engine, check_envelope):
    info, engine.info = engine.info, None
    async with make_server() as server:
        assert (await server.http.get("/health/live")).status_code == 200
        check_envelope(await server.http.get("/health/ready"), 503, "loading")
        check_envelope(await server.http.post("/v1/completions", json={"prompt": "a"}), 503, "loading")
        check_envelope(await server.upload(), 503, "loading")
        assert (await server.http.get("/metrics")).status_code == 200
        engine.info = info
        assert (await server.http.get("/health/ready")).status_code == 200
        assert (await server.http.post("/v1/completions", json={"prompt": "a"})).status_code == 200


async def test_tokenizer_routes(server, tokenizer, check_envelope):
    ids = tokenizer.encode("the quick").ids
    answer = (await server.http.post("/tokenize", json={"prompt": "the quick", "return_token_strs": True})).json()
    assert answer == {
        "count": len(ids),
        "max_model_len": 128,
        "tokens": ids,
        "token_strs": tokenizer.encode("the quick").tokens,
    }
    back = await server.http.post("/detokenize", json={"tokens": [0, *ids], "model": "base"})
    assert back.json() == {"prompt": "<s>the quick"}
    chat = (await server.http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]})).json()
    assert chat["tokens"] == tokenizer.encode("<s>user: hi\nassistant: ", add_special_tokens=False).ids
    info = (await server.http.get("/tokenizer_info")).json()
    assert info["special_tokens"]["bos_token"] == info["bos_token"] == "<s>"
    assert (info["eos_token"], info["pad_token"], info["model_max_length"]) == ("</s>", None, 128)
    check_envelope(await server.http.post("/tokenize", json={"prompt": "a", "model": "nobody"}), 404)
    check_envelope(await server.http.post("/tokenize", json={}), 400)
    check_envelope(await server.http.post("/detokenize", json={"tokens": [400]}), 400)


def test_the_http_side_leaves_torch_alone():
    program = """
import sys
import peftserve.server.api.serve
from peftserve.server.api.private.transformers_private import template_renderer
template_renderer()
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
