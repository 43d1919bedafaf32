"""What every answer has, whoever gives it: an id, what other origins need, the right size, and the right methods."""

import gzip
import re

import pytest

ORIGIN = "https://page.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
BODY = {"prompt": [5], "max_tokens": 2}


async def test_every_answer_has_an_id_the_clients_own_if_it_is_one(make_server, engine, monkeypatch, caplog):
    async with make_server(api_keys=("k",), body_limit=1000) as server:
        key = {"Authorization": "Bearer k"}
        asked = [
            ("GET", "/health", {}, 200),
            ("GET", "/v1/models", {}, 401),
            ("GET", "/nowhere", {}, 404),
            ("DELETE", "/health", {}, 405),
            ("POST", "/v1/completions", {"content": b"{", "headers": key}, 400),
            ("POST", "/v1/completions", {"content": b"x" * 1001, "headers": key}, 413),
            ("POST", "/v1/completions", {"json": BODY, "headers": key}, 200),
            ("POST", "/v1/completions", {"json": {**BODY, "stream": True}, "headers": key}, 200),
        ]
        seen = set()
        for method, path, more, status in asked:
            answer = await server.http.request(method, path, **more)
            assert answer.status_code == status, path
            seen.add(answer.headers["x-request-id"])
            headers = {**more.get("headers", {}), "X-Request-Id": "mine, of 7"}
            answer = await server.http.request(method, path, **{**more, "headers": headers})
            assert answer.headers.get_list("x-request-id") == ["mine, of 7"], path
        assert len(seen) == len(asked)
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in seen)
        for bad in (b"\xffabc", b"x" * 129, b"a\tb"):
            answer = await server.http.get("/health", headers={"x-request-id": bad})
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        monkeypatch.setattr(engine, "submit", lambda request, sink: 1 / 0)
        answer = await server.http.post("/v1/completions", json=BODY, headers={**key, "x-request-id": "broken-1"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "broken-1")
        monkeypatch.setattr(server.services.adapters.registry, "page", lambda **_: 1 / 0)
        answer = await server.http.get("/v1/models", headers={**key, "x-request-id": "broken-2"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "broken-2")
        assert {"The request broken-1 has failed", "The request broken-2 has failed"} <= {*caplog.messages}


async def test_pages_of_an_allowed_origin_may_ask_and_read_every_answer(make_server, engine, check_envelope):
    async with make_server(api_keys=("k",), allow_origins=(ORIGIN,), body_limit=1000, max_queue=0) as server:
        preflight = await server.http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
        refused = await server.http.options("/v1/models", headers={**PREFLIGHT, "Origin": "https://evil.example"})
        check_envelope(refused, 403)
        assert "access-control-allow-origin" not in refused.headers
        key = {"Authorization": "Bearer k", "Origin": ORIGIN}
        crowd = {**BODY, "n": 5, "best_of": 5}
        for path, more, status in [
            ("/v1/completions", {"json": BODY, "headers": key}, 200),
            ("/v1/completions", {"json": BODY, "headers": {"Origin": ORIGIN}}, 401),
            ("/nowhere", {"headers": key}, 404),
            ("/health", {"headers": key}, 405),
            ("/v1/completions", {"content": b"x" * 1001, "headers": key}, 413),
            ("/v1/completions", {"json": crowd, "headers": key}, 400),
            ("/v1/completions", {"json": {**BODY, "stream": True}, "headers": key}, 200),
        ]:
            answer = await server.http.post(path, **more)
            assert answer.status_code == status, answer.text
            assert answer.headers["access-control-allow-origin"] == ORIGIN, path
            assert "Origin" in answer.headers["vary"]
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert "x-peftserve-adapter" in answer.headers["access-control-expose-headers"]
        monkeypatched = engine.submit
        engine.submit = lambda request, sink: 1 / 0
        answer = await server.http.post("/v1/completions", json=BODY, headers=key)
        engine.submit = monkeypatched
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, ORIGIN)
        other = await server.http.get("/health", headers={"Origin": "https://evil.example"})
        check_envelope(other, 403)
        assert "access-control-allow-origin" not in other.headers
        assert "Origin" in other.headers["vary"]


async def test_no_page_of_another_origin_gets_to_any_route(make_server, engine, check_envelope):
    async with make_server(ui=True) as server:
        await server.upload("sql")
        own = server.url.replace("127.0.0.1", "localhost")
        requests = [
            ("GET", "/health", {}),
            ("HEAD", "/v1/models", {}),
            ("GET", "/", {}),
            ("OPTIONS", "/v1/models", {"headers": PREFLIGHT}),
            ("POST", "/v1/completions", {"json": BODY}),
            ("POST", "/v1/unload_lora_adapter", {"content": b'{"lora_name": "sql"}'}),
            ("POST", "/v1/adapters", {"files": {"adapter_config.json": b"{}"}}),
            ("DELETE", "/v1/adapters/sql", {}),
            ("POST", "/nowhere", {}),
        ]
        for origin in (
            ORIGIN,
            "null",
            "",
            own,
            server.url.replace("http", "https"),
            f"{server.url}/",
            "http://127.0.0.1",
        ):
            for method, path, more in requests:
                headers = {**more.get("headers", {}), "Origin": origin, "Content-Type": "text/plain"}
                answer = await server.http.request(method, path, **{**more, "headers": headers})
                assert answer.status_code == 403, (origin, method, path)
                if method != "HEAD":
                    assert check_envelope(answer, 403)["code"] == "origin_not_allowed"
        assert not engine.requests
        asked = await server.http.post("/v1/completions", json=BODY, headers={"Origin": server.url})
        assert asked.status_code == 200
        assert (await server.http.options("/v1/models")).status_code == 405
        assert (await server.http.delete("/v1/adapters/sql")).status_code == 200


async def test_on_a_loopback_without_keys_a_host_is_a_name_of_it(make_server, check_envelope):
    async def status(server, host, **headers):
        return (await server.http.get("/v1/models", headers={"Host": host, **headers})).status_code

    rebound = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
    async with make_server(allowed_hosts=("box.example", "*.lan")) as server:
        for host in ("localhost:8000", "app.localhost", "127.0.0.2", "[::1]:80", "BOX.example.:1", "nas.lan:8000"):
            assert await status(server, host) == 200, host
        for host in ("evil.example", "localhost.evil.example", "lan", "192.168.0.7", "0.0.0.0", "x@localhost", "[::1"):
            assert await status(server, host) == 403, host
        answer = await server.http.request("GET", "/v1/models", headers=rebound)
        assert check_envelope(answer, 403)["code"] == "host_not_allowed"
    async with make_server(allow_origins=("*",)) as server:
        assert await status(server, host=rebound["Host"], Origin="null") == 403
    async with make_server(api_keys=("k",)) as server:
        assert await status(server, "llm.example", Authorization="Bearer k") == 200


async def test_the_own_origin_is_what_a_trusted_proxy_says(make_server):
    shown = {"Origin": "https://llm.example", "X-Forwarded-Host": "llm.example, inner", "X-Forwarded-Proto": "https"}
    for trusted, status in (((), 403), (("10.0.0.0/8",), 403), (("10.0.0.1", "127.0.0.0/8"), 200), (("*",), 200)):
        async with make_server(forwarded_allow_ips=trusted) as server:
            assert (await server.http.get("/health", headers=shown)).status_code == status
            assert (await server.http.get("/health", headers={**shown, "Origin": ORIGIN})).status_code == 403


async def test_any_origin(make_server):
    async with make_server(allow_origins=("*",)) as server:
        for origin in (ORIGIN, "null"):
            assert (await server.http.get("/health", headers={"Origin": origin})).status_code == 200


async def test_credentials_are_for_an_origin_by_its_name(make_server):
    async with make_server(allow_origins=("*",), allowed_methods=("GET",), allowed_headers=("x-a",)) as server:
        assert (await server.http.get("/health", headers={"Origin": ORIGIN})).headers[
            "access-control-allow-origin"
        ] == "*"
        assert (await server.http.options("/v1/models", headers=PREFLIGHT)).status_code == 400
    async with make_server(allow_origins=("*",), allow_credentials=True) as server:
        answer = await server.http.get("/health", headers={"Origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"


async def test_head_is_get_without_the_body(server, adapter_bytes):
    await server.upload("sql")
    for path in ("/health", "/v1/models", "/metrics", "/openapi.json", "/v1/adapters/sql", "/docs", "/version"):
        got, asked = await server.http.get(path), await server.http.head(path)
        assert asked.status_code == got.status_code == 200
        assert asked.content == b""
        assert asked.headers["content-type"] == got.headers["content-type"]
    file = "/v1/adapters/sql/files/adapter_model.safetensors"
    size = len(adapter_bytes()["adapter_model.safetensors"])
    assert (await server.http.head(file)).headers["content-length"] == str(size)
    assert (await server.http.head("/nowhere")).status_code == 404
    assert (await server.http.head("/v1/adapters/nobody")).status_code == 404
    for _ in range(70):  # none of them is kept: each stream of events would take one of 64 places
        assert (await server.http.head("/v1/adapters/events")).status_code == 200
    async with server.http.stream("GET", "/v1/adapters/events") as stream:
        assert stream.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/completions", "POST"),
        ("POST", "/v1/adapters/sql", "DELETE, GET, HEAD, PATCH"),
        ("PUT", "/v1/adapters", "GET, HEAD, POST"),
        ("POST", "/v1/default-adapter", "GET, HEAD, PUT"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/ping", "GET, HEAD, POST"),
        ("DELETE", "/v1/routes/r", "DELETE, GET, HEAD, PUT"),
    ],
)
async def test_what_a_path_takes_is_said_in_full(server, check_envelope, method, path, allowed):
    answer = await server.http.request(method, path)
    if method == "DELETE" and path == "/v1/routes/r":
        answer = await server.http.request("POST", path)
    assert answer.headers["allow"] == allowed
    if method != "HEAD":
        check_envelope(answer, 405)


async def test_large_answers_are_compressed_for_who_takes_it(make_server, engine):
    async with make_server(allow_origins=(ORIGIN,)) as server:

        async def got(path, accept, **more):
            headers = {"Accept-Encoding": accept, "Origin": ORIGIN}
            async with server.http.stream(path[0], path[1], headers=headers, **more) as answer:
                return answer, b"".join([piece async for piece in answer.aiter_raw()])

        for path in (("GET", "/openapi.json"), ("GET", "/metrics")):
            plain, whole = await got(path, "identity")
            assert "content-encoding" not in plain.headers
            assert "Accept-Encoding" in plain.headers["vary"]
            for accept in ("gzip", "br, gzip;q=0.5", "*"):
                packed, body = await got(path, accept)
                assert packed.headers["content-encoding"] == "gzip"
                assert int(packed.headers["content-length"]) == len(body) < len(whole) / 2
                assert {"Accept-Encoding", "Origin"} <= {*packed.headers["vary"].split(", ")}
                assert path[1] == "/metrics" or gzip.decompress(body) == whole
            for accept in ("gzip;q=0", "br", "gzip;q=x", "*;q=0"):
                assert "content-encoding" not in (await got(path, accept))[0].headers
        small, _ = await got(("GET", "/health"), "gzip")
        assert "content-encoding" not in small.headers
        long = {"prompt": [5], "max_tokens": 100, "ignore_eos": True, "logprobs": 5}
        packed, body = await got(("POST", "/v1/completions"), "gzip", json=long)
        assert packed.headers["content-encoding"] == "gzip"
        assert b'"text"' in gzip.decompress(body)
        stream, body = await got(("POST", "/v1/completions"), "gzip", json={**long, "stream": True})
        assert "content-encoding" not in stream.headers
        assert body.endswith(b"data: [DONE]\n\n")
        await server.upload("sql")
        await server.upload("large", rank=512)
        for name in ("sql", "large"):  # weights get no smaller
            file, _ = await got(("GET", f"/v1/adapters/{name}/files/adapter_model.safetensors"), "gzip")
            assert "content-encoding" not in file.headers
    async with make_server(gzip=False) as server:
        assert "content-encoding" not in (await server.http.get("/openapi.json")).headers


@pytest.mark.parametrize("path", ["/llm/v1/models", "/v1/models", "/llm/openapi.json", "/llm/docs", "/docs"])
async def test_a_proxy_may_take_its_prefix_off_or_leave_it(make_server, check_envelope, path):
    async with make_server(root_path="/llm", api_keys=("k",)) as server:
        answer = await server.http.get(path, headers={"Authorization": "Bearer k"})
        assert answer.status_code == 200
        if path.endswith("openapi.json"):
            assert answer.json()["servers"] == [{"url": "/llm"}]
        if path.endswith("docs"):
            assert "'/llm/openapi.json'" in answer.text
        check_envelope(await server.http.get("/llm/v1/models"), 401)
        body = await server.http.post("/llm/v1/completions", json=BODY, headers={"Authorization": "Bearer k"})
        assert body.status_code == 200
        check_envelope(await server.http.get("/llmv1/models"), 404)


async def test_a_prefix_like_a_path_of_ours(make_server):
    async with make_server(root_path="/v1") as server:
        assert (await server.http.get("/v1/v1/models")).status_code == 200
        assert (await server.http.post("/v1/v1/completions", json=BODY)).status_code == 200
        assert (await server.http.get("/v1/health")).status_code == 200
