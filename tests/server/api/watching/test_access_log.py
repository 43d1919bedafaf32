"""The lines of a real server, as whoever reads its standard output has them."""

import asyncio
import json
import re

import pytest

from peftserve.server.api.watching import watchers
from peftserve.server.api.watching.access_log import Line, as_json, as_text

BODY = {"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
SECRET = "do-not-tell"


@pytest.fixture
def lines(tmp_path, monkeypatch, until):
    """Waits for so many lines more on what is the standard output, and returns them.

    It is a file: pytest's own empties what it captures when it reads it, with what is written just then.
    """
    file, read = tmp_path / "output", 0

    async def wait(number):
        nonlocal read
        first, read = read, read + number
        await until(lambda: file.read_bytes().count(b"\n") >= read)
        return [json.loads(line) for line in file.read_bytes().splitlines()[first:read]]

    with file.open("ab") as output:
        monkeypatch.setattr(watchers, "STANDARD_OUTPUT", output.fileno())
        yield wait


async def test_one_line_for_each_request_with_what_it_did(make_server, lines):
    async with make_server(access_log="json", api_keys=(SECRET,)) as server:
        key = {"Authorization": f"Bearer {SECRET}", "User-Agent": 'a "b"\tc', "X-Request-Id": "r-1"}
        server.http.headers.update(key)
        await server.upload("sql")
        body = {**BODY, "model": "sql", "n": 2, "user": SECRET}
        answer = await server.http.post(f"/v1/completions?key={SECRET}", json=body)
        stream = await server.http.post("/v1/completions", json={**BODY, "prompt": [5] * 20, "stream": True})
        assert stream.text.endswith("[DONE]\n\n")
        await server.http.get("/v1/models", headers={"Authorization": "", "X-Forwarded-For": "10.1.1.1"})
        await server.http.head("/nowhere")
        upload, whole, streamed, refused, head = await lines(5)
        assert (upload["method"], upload["path"], upload["status"]) == ("POST", "/v1/adapters", 201)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", whole.pop("time"))
        usage = answer.json()["usage"]
        assert whole.pop("seconds") >= whole.pop("first_token_seconds") > 0
        assert len(whole.pop("tenant")) == 12
        assert whole.pop("bytes") == len(answer.content)
        assert whole == {
            "id": "r-1",
            "client": "127.0.0.1",
            "method": "POST",
            "path": "/v1/completions",
            "status": 200,
            "adapter": "sql@1",
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "queue_seconds": 0.001,
            "user_agent": 'a "b"\tc',
        }
        assert (streamed["stream"], streamed["completion_tokens"], streamed["cached_tokens"]) == (True, 4, 16)
        assert (refused["status"], refused["forwarded_for"]) == (401, "10.1.1.1")
        assert "prompt_tokens" not in refused
        assert (head["method"], head["status"]) == ("HEAD", 404)
        said = json.dumps([upload, whole, streamed, refused, head])
        assert SECRET not in said


async def test_clients_that_leave_are_499(make_server, engine, lines, until):
    engine.delay = 0.05
    async with make_server(access_log="json") as server:
        long = {**BODY, "max_tokens": 100}
        asking = asyncio.create_task(server.http.post("/v1/completions", json=long))
        await until(lambda: engine.running)
        asking.cancel()
        await until(lambda: not engine.running)
        async with server.http.stream("POST", "/v1/completions", json={**long, "stream": True}) as stream:
            assert stream.status_code == 200
            await anext(stream.aiter_lines())
        whole, stream = await lines(2)
        assert (whole["status"], whole.get("stream")) == (499, None)
        assert (stream["status"], stream["stream"]) == (499, True)
        assert 0 < stream["completion_tokens"] < 100
        await until(lambda: server.services.admission.in_flight == 0)


async def test_routes_are_named_and_failures_have_their_status(make_server, engine, lines):
    async with make_server(access_log="json") as server:
        await server.http.put("/v1/routes/r", json={"kind": "alias", "target": "base"})
        await server.http.post("/v1/completions", json={**BODY, "model": "r"})
        engine.submit = lambda request, sink: 1 / 0
        await server.http.post("/v1/completions", json=BODY)
        _, routed, failed = await lines(3)
        assert (routed["adapter"], routed["route"]) == ("base", "r@1")
        assert failed["status"] == 500


async def test_who_is_turned_away_before_any_route_has_a_line_too(make_server, lines):
    async with make_server(access_log="json", timeout_body=0.2, allow_origins=("https://a.example",)) as server:
        port = int(server.url.rpartition(":")[2])
        for sent, status, reason in [
            (b"junk\r\n\r\n", 400, "invalid"),
            (b"GET /x?" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", 414, "url"),
            (
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: slow\r\nOrigin: https://a.example\r\n"
                b"Content-Length: 9\r\n\r\n{",
                408,
                None,
            ),
        ]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            answer = (await asyncio.wait_for(reader.read(), 60)).decode()
            writer.close()
            (line,) = await lines(1)
            assert (line["status"], line.get("refused")) == (status, reason)
            assert f"\r\nx-request-id: {line['id']}\r\n" in answer
            if reason is None:
                assert (line["id"], line["path"]) == ("slow", "/v1/completions")
                assert "\r\naccess-control-allow-origin: https://a.example\r\n" in answer


async def test_without_it_there_is_none(server, capfd):
    await server.http.get("/health")
    assert "/health" not in capfd.readouterr().out


def test_a_line_is_one_line_whatever_clients_say():
    line = Line(time="T", id='a "b"', client="c", method="GET", path='/x"\n\x7fü', status=200, user_agent="a\nb c")
    for form in (as_json, as_text):
        written = form(line)
        assert written.count(b"\n") == 1
        assert written.endswith(b"\n")
    text = as_text(Line(time="T", id="r1", method="GET", path="/health", status=200, stream=True, queue_seconds=0.5))
    assert text == b'T - "GET /health" 200 0 0.000s id=r1 stream=true queue_seconds=0.500000\n'
