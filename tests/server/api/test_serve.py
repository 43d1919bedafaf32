"""The server's life in real processes: start, signals, and the death of either process."""

import contextlib
import functools
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.server.api.certificates import Authority
from tests.server.api.fake_server import LONG, PATIENCE, runs, wait_until

SHORT = {**LONG, "max_tokens": 20}


@pytest.mark.slow
def test_adapters_of_the_command_line_are_there_and_survive_restarts_once(start, folder):
    for _ in range(2):
        server = start(preload=[("sql", folder)])
        server.wait_for()
        assert server.http.get("/v1/adapters/sql").json()["version"] == 1
        answer = server.http.post("/v1/completions", json={"model": "sql", "prompt": [5], "return_token_ids": True})
        assert answer.json()["choices"][0]["token_ids"] == [5] * 16
        server.http.put("/v1/default-adapter", json={"adapter": "sql"})
        assert server.stop() == 0
    server = start()
    server.wait_for()
    assert server.http.get("/v1/default-adapter").json() == {"adapter": "sql"}
    assert server.stop() == 0


@pytest.mark.slow
def test_routes_of_the_command_line_are_put_where_there_are_none(start, folder, tmp_path):
    for target, name in (("sql", "r"), ("base", "r"), ("base", "sql")):  # new; already there; an adapter's name
        file = tmp_path / "route.json"
        file.write_text(json.dumps({"kind": "alias", "target": target}))
        server = start(preload=[("sql", folder)], routes=[(name, str(file))])
        server.wait_for()
        answer = server.http.post("/v1/completions", json={"model": "r", "prompt": [5], "max_tokens": 1})
        assert (answer.headers["x-peftserve-route"], answer.json()["model"]) == ("r@1", "sql@1")
        assert server.stop() == 0
    server = start(preload=[("sql", folder)], routes=[("new", "/dev/null")])
    assert (
        "route 'new' from '/dev/null': the route's body is no JSON" in server.process.communicate(timeout=PATIENCE)[1]
    )
    assert server.process.returncode == 1


def test_sigterm_lets_streams_finish_and_takes_no_new_requests(start, tmp_path):
    server = start(f"holds:{tmp_path}/may-end", grace=60.0)
    server.wait_for()
    with server.stream(SHORT) as (lines, thread):
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("/health/ready", 503)
        refused = server.http.post("/v1/completions", json={"prompt": [5]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        (tmp_path / "may-end").touch()
        thread.join(PATIENCE)
    assert server.process.wait(PATIENCE) == 0
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in lines[-2]


@pytest.mark.parametrize("ended_by", ["grace", "second signal"])
def test_after_the_grace_time_streams_end_with_an_error_and_the_exit_is_clean(start, tmp_path, ended_by):
    server = start(f"holds:{tmp_path}/never", grace=0.2 if ended_by == "grace" else 60.0)
    server.wait_for()
    with server.stream() as (lines, _):
        server.process.send_signal(signal.SIGTERM)
        if ended_by == "second signal":
            server.wait_for("/health/ready", 503)
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
    assert lines[-1] == "data: [DONE]"
    assert '"error"' in lines[-2]


def test_kill_of_the_server_takes_every_process_with_it_and_leaves_nothing(start, tmp_path):
    (tmp_path / "tmp").mkdir()
    server = start("slow", api_workers=2, folder=tmp_path / "tmp")
    server.wait_for()
    children = server.children
    assert len(children) == 2
    os.kill(server.engines[0], signal.SIGSTOP)
    server.process.kill()
    wait_until(lambda: not any(map(runs, children)) and not list((tmp_path / "tmp").iterdir()))


@pytest.mark.slow
def test_every_process_answers_by_tls_and_on_a_unix_socket(start, folder, tmp_path):
    """And what they pass on to each other goes by neither."""
    certificate, key = Authority(tmp_path).issue("server")
    tls = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    path = tmp_path / "socket"
    for paths in (tls, {"uds": str(path)}):
        server = start(preload=[("sql", folder)], api_workers=2, paths=paths)
        if paths is tls:
            server.http.base_url = str(server.http.base_url).replace("http:", "https:")
        else:
            server.http.close()
            transport = httpx.HTTPTransport(uds=str(path))
            server.http = httpx.Client(base_url="http://x", transport=transport, timeout=PATIENCE)
            _wait_to_connect(path)  # httpx leaves a socket open where nobody listens
        server.wait_for()
        for _ in range(12):  # connections, which come to both
            with _again(server.http, paths.get("uds")) as http:
                answer = http.post("/v1/completions", json={"model": "sql", "prompt": [5]})
                assert answer.headers["x-peftserve-adapter"] == "sql@1"
                card = http.get("/v1/adapters/sql", headers={"x-request-id": "a-7"})
                assert (card.status_code, card.headers.get_list("x-request-id")) == (200, ["a-7"])
        if "uds" in paths:
            other = start(paths=paths, folder=None)
            assert other.process.wait(PATIENCE) == 1
            assert "another server does" in other.process.stderr.read()
        server.http.close()
        assert server.stop() == 0
    assert not path.exists()


def _wait_to_connect(path):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            return probe.connect(str(path))
        time.sleep(0.02)
    raise TimeoutError(path)


def _again(http, uds):
    """The same client with connections of its own."""
    transport = httpx.HTTPTransport(uds=uds, verify=False)
    return httpx.Client(base_url=http.base_url, transport=transport, timeout=PATIENCE)


@pytest.mark.slow
def test_sigterm_drains_every_process(start, tmp_path):
    server = start(f"holds:{tmp_path}/may-end", api_workers=2, grace=60.0)
    server.wait_for()
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(server.stream(SHORT))[0] for _ in range(6)]
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("/health/ready", 503)
        (tmp_path / "may-end").touch()
    assert server.process.wait(PATIENCE) == 0
    assert [lines[-1] for lines in streams] == ["data: [DONE]"] * 6
    assert all('"finish_reason":"length"' in lines[-2] for lines in streams)


def test_sigterm_lets_an_upload_finish(start, tmp_path, adapter_bytes):
    server = start(grace=60.0)
    server.wait_for()
    files = [("files", file) for file in adapter_bytes().items()]
    whole = server.http.build_request("POST", "/v1/adapters", data={"name": "sql"}, files=files)
    body, may_end, answers = whole.read(), threading.Event(), []

    def pieces():
        yield body[: len(body) // 2]
        may_end.wait(PATIENCE)
        yield body[len(body) // 2 :]

    headers = {"content-type": whole.headers["content-type"]}
    ask = functools.partial(server.http.post, "/v1/adapters", content=pieces(), headers=headers)
    uploading = threading.Thread(target=lambda: answers.append(ask().status_code))
    uploading.start()
    wait_until(lambda: [*(tmp_path / "state" / "staging").iterdir()])
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("/health/ready", 503)
    may_end.set()
    uploading.join(PATIENCE)
    assert (answers, server.process.wait(PATIENCE)) == ([201], 0)


@pytest.mark.parametrize("model", ["fails", "crashes"])
def test_an_engine_that_cannot_start_ends_the_server_with_its_reason(start, model):
    server = start(model)
    assert server.process.wait(PATIENCE) == 1
    said = server.process.stderr.read()
    assert {"fails": "no such model", "crashes": "exit code 3"}[model] in said
    assert "Traceback" not in said


def test_a_port_or_a_state_folder_in_use_is_said(start, tmp_path):
    first = start()
    first.wait_for()
    second = start()
    assert second.process.wait(PATIENCE) == 1
    assert "another server uses this state folder" in second.process.stderr.read()
    assert first.stop() == 0


def test_a_faulty_adapter_on_the_command_line_is_named(start, folder):
    Path(folder, "adapter_config.json").write_text("{}")
    server = start(preload=[("sql", folder)])
    assert server.process.wait(PATIENCE) == 1
    assert "adapter 'sql'" in server.process.stderr.read()


@pytest.mark.slow
def test_a_folder_and_sources_are_the_same_for_every_process(start, folder, tmp_path, adapter_bytes):
    """What lies in the folder is there when the server is ready; what no process knows, the primary gets for all."""
    elsewhere = tmp_path / "elsewhere" / "json"
    elsewhere.mkdir(parents=True)
    for name, content in adapter_bytes().items():
        (elsewhere / name).write_bytes(content)
    watched = tmp_path / "watched"
    watched.mkdir()
    os.rename(folder, watched / "sql")
    server = start(api_workers=2, adapter_dir=str(watched), adapter_sources=[f"{tmp_path}/elsewhere/{{name}}"])
    server.wait_for()
    for name, status in [("sql", 200), ("json", 200), ("absent", 404)]:
        for _ in range(12):  # connections, which are dealt out to the processes
            body = {"model": name, "prompt": [5]}
            answer = httpx.post(f"{server.http.base_url}/v1/completions", json=body, timeout=PATIENCE)
            assert (answer.status_code, answer.headers.get("x-peftserve-adapter")) == (
                status,
                f"{name}@1" if status == 200 else None,
            )
    for _ in range(12):
        answer = httpx.post(f"{server.http.base_url}/private/searches/json", timeout=PATIENCE)
        assert answer.status_code == 404
    assert server.stop() == 0


@pytest.mark.slow
def test_a_kill_during_a_fetch_leaves_nothing_half_there(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as source:
        server = start(sources=["http"])
        server.wait_for()
        uri = f"http://127.0.0.1:{source.getsockname()[1]}/sql"
        body = {"name": "sql", "source": {"type": "http", "uri": uri}}
        staging = tmp_path / "state" / "staging"

        def ask():
            with contextlib.suppress(httpx.TransportError):
                server.http.post("/v1/adapters", json=body)

        asking = threading.Thread(target=ask)
        asking.start()
        connection, _ = source.accept()
        assert connection.recv(1000).startswith(b"GET /sql/adapter_config.json")
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 900000\r\n\r\n" + bytes(200_000))
        while not [file for folder in staging.iterdir() for file in folder.iterdir()]:
            assert asking.is_alive()
            time.sleep(0.01)
        server.process.kill()
        server.process.wait(PATIENCE)
        asking.join(PATIENCE)
        connection.close()
    assert list(staging.iterdir())
    server = start()
    server.wait_for()
    assert list(staging.iterdir()) == []
    assert server.http.get("/v1/adapters").json()["data"] == []
    assert server.stop() == 0
