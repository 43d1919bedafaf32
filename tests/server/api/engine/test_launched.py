"""An engine that dies or hangs, in real processes: what clients are told, and the engine that takes its place."""

import json
import os
import signal

import httpx
import pytest

from tests.server.api.fake_server import PATIENCE, runs, wait_until

pytestmark = pytest.mark.slow

SHORT = {"prompt": [5, 6], "max_tokens": 2}


def _fields(**fields):
    return {"fields": {"engine_timeout": 3.0, **fields}}


def _code(answer):
    return answer.status_code, answer.json().get("error", {}).get("code")


def _new_engine(server, before):
    """Wait for an engine that answers in place of another, and return its process."""
    wait_until(lambda: any(pid not in before for pid in server.engines))
    server.wait_for()
    (engine,) = server.engines
    return engine


def test_another_takes_the_place_of_one_that_is_killed_or_hangs(start, folder, tmp_path):
    """With two API processes; the adapter and the default survive, and nothing of the dead engine does.

    Then with a worker that starts while no engine is there.
    """
    loading = tmp_path / "loading"
    server = start(f"waits:{loading}", preload=[("sql", folder)], api_workers=2, **_fields())
    server.wait_for()
    assert server.http.put("/v1/default-adapter", json={"adapter": "sql"}).status_code == 200
    for restarts, how in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
        (engine,) = server.engines
        (worker,) = set(server.children) - {engine}
        with server.stream() as (lines, thread):
            loading.touch()
            os.kill(engine, how)
            if how == signal.SIGSTOP:
                server.wait_for("/health/live", 503)
            thread.join(PATIENCE)
            assert '"engine_dead"' in lines[-2]
        server.wait_for("/health/live")
        _check_that_none_answers(server)
        if how == signal.SIGSTOP:
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda before=worker: {*server.children} - {*server.engines, before})
        loading.unlink()
        assert _new_engine(server, {engine}) != engine
        assert not os.path.exists(f"/proc/{engine}")
        for _ in range(12):  # connections, which come to both processes
            _check_that_all_is_as_it_was(server)
        assert f"peftserve_engine_restarts_total {restarts}.0" in server.http.get("/metrics").text
    assert server.stop() == 0
    assert "no sign of life for" in server.process.stderr.read()


def _restarts(server):
    lines = server.http.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("peftserve_engine_restarts_total "))


def _check_that_none_answers(server):
    answer = server.http.get("/health/ready")
    assert _code(answer) in ((503, "engine_dead"), (503, "loading"))
    refused = server.http.post("/v1/completions", json=SHORT)
    assert (answer.status_code, refused.status_code) == (503, 503)
    assert answer.headers["retry-after"]
    assert refused.headers["retry-after"]


def _check_that_all_is_as_it_was(server):
    with httpx.Client(base_url=server.http.base_url, timeout=PATIENCE) as http:
        wait_until(lambda: http.get("/health/ready").status_code == 200)
        answer = http.post("/v1/completions", json={**SHORT, "model": "default"})
        assert (answer.status_code, answer.headers["x-peftserve-adapter"]) == (200, "sql@1")


def test_one_that_stops_for_a_while_goes_on(start):
    server = start("slow", **_fields(engine_timeout=60.0))
    server.wait_for()
    (engine,) = server.engines
    with server.stream() as (lines, thread):
        os.kill(engine, signal.SIGSTOP)
        server.wait_for("/health/ready", 503)
        assert _code(server.http.get("/health/ready")) == (503, "engine_silent")
        assert server.http.get("/health/live").status_code == 200
        age = next(
            line for line in server.http.get("/metrics").text.splitlines() if line.startswith("peftserve_engine_stats")
        )
        assert float(age.split()[-1]) > 3
        os.kill(engine, signal.SIGCONT)
        server.wait_for()
        thread.join(PATIENCE)
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in lines[-2]
    assert server.engines == [engine]
    assert server.stop() == 0


def test_one_that_dies_in_a_call_or_while_it_loads_is_replaced(start, folder, tmp_path):
    """An upload that was under way gets its 503, and nothing of it is left; the next one is taken."""
    server = start("kills", **_fields())
    server.wait_for()
    (engine,) = server.engines
    files = [("files", (name, (tmp_path / "sql" / name).read_bytes())) for name in os.listdir(folder)]
    answer = server.http.post("/v1/adapters", data={"name": "sql"}, files=files)
    assert _code(answer) == (503, "engine_dead")
    wait_until(lambda: any(pid != engine for pid in server.engines))
    (second,) = server.engines
    os.kill(second, signal.SIGKILL)  # loads, most likely
    _new_engine(server, {engine, second})
    assert server.http.get("/v1/adapters").json()["data"] == []
    assert not any((tmp_path / "state" / "staging").iterdir())
    assert server.stop() == 0


def test_one_that_cannot_start_any_more_is_tried_ever_later(start, tmp_path):
    marker = tmp_path / "gone"
    server = start(f"once:{marker}", **_fields())
    server.wait_for()
    marker.touch()
    os.kill(server.engines[0], signal.SIGKILL)
    server.wait_for("/health/live", 503)
    assert server.http.post("/v1/completions", json=SHORT).status_code == 503
    wait_until(lambda: _restarts(server) > 1)  # one of them has failed
    marker.unlink()
    server.wait_for()
    assert server.http.post("/v1/completions", json=SHORT).status_code == 200
    assert server.stop() == 0
    tried = server.process.stderr.read().count("The engine does not start: no such model")
    assert 1 <= tried <= 6


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_restarts_the_server_ends_with_a_status_of_its_own(start, how):
    server = start("slow", api_workers=2, **_fields(engine_restart=False))
    server.wait_for()
    children = server.children
    with server.stream() as (lines, thread):
        os.kill(server.engines[0], how)
        thread.join(PATIENCE)
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert server.process.wait(PATIENCE) == 4
    wait_until(lambda: not any(map(runs, children)))
