"""The whole server over two replicas, in real processes: its start, its end, and the end of its parts."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.server.api.fake_server import LONG, starting
from tests.server.deploy import local_fleet
from tests.server.deploy.local_fleet import PATIENCE

SHORT = {"prompt": [5, 6], "max_tokens": 6, "return_token_ids": True}


@pytest.fixture
def start(tmp_path):
    with starting(tmp_path) as start:
        yield lambda model="fake", **more: start(model, engine=local_fleet.__file__, **more)


def dealer(server):
    """Return the process that deals sequences out."""
    return next(child for child in server.children if b"local_fleet" in command_line(child))


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def engines(pid):
    """Return the engines that a process has started, on whichever of its threads."""
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that ends while it is looked at
            children += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in children if b"fake_engine" in command_line(child)]


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metric(server, name):
    lines = server.http.get("/metrics").text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


def test_two_replicas_answer_as_one_server_and_end_with_it(start):
    server = start(api_workers=2)
    server.wait_for()
    wait_for(lambda: metric(server, "peftserve_replicas") == 2)
    started = engines(dealer(server))
    assert len(started) == 2
    for _ in range(8):  # on connections of both API processes
        answer = httpx.post(f"{server.http.base_url}/v1/completions", json=SHORT, timeout=PATIENCE)
        assert answer.json()["choices"][0]["token_ids"] == [5, 6] * 3
    assert server.stop() == 0
    wait_for(lambda: not any(map(command_line, started)))


def test_a_replica_that_is_killed_takes_along_what_it_had_begun_and_the_server_goes_on(start):
    server = start("slow")
    server.wait_for()
    wait_for(lambda: metric(server, "peftserve_replicas") == 2)
    with server.stream(LONG) as (lines, thread), server.stream(LONG) as (others, other):
        wait_for(lambda: metric(server, "peftserve_sequences_running") == 2)
        for engine in engines(dealer(server)):  # the first has one of the two, or both
            os.kill(engine, signal.SIGKILL)
            break
        wait_for(lambda: metric(server, "peftserve_replicas") == 1)
        thread.join(PATIENCE)
        other.join(PATIENCE)
    ends = [text for line in (*lines, *others) for text in ("replica_lost", '"finish_reason":"length"') if text in line]
    assert len(ends) == 2
    assert server.http.post("/v1/completions", json=SHORT).status_code == 200
    assert server.http.get("/health").status_code == 200
    assert server.stop() == 0


def test_without_replicas_the_server_says_so_and_stays(start):
    server = start()
    server.wait_for()
    wait_for(lambda: metric(server, "peftserve_replicas") == 2)
    for engine in engines(dealer(server)):
        os.kill(engine, signal.SIGKILL)
    server.wait_for("/health/ready", 503)
    answer = server.http.post("/v1/completions", json=SHORT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
    assert answer.headers["retry-after"] == "5"
    assert server.http.get("/health").json()["error"]["code"] == "no_replica"
    assert server.http.get("/health/live").status_code == 200
    assert server.stop() == 0


def test_what_deals_out_is_started_again_with_its_replicas(start):
    server = start()
    server.wait_for()
    first = dealer(server)
    left = engines(first)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: metric(server, "peftserve_engine_restarts_total") == 1)
    server.wait_for()
    assert server.http.post("/v1/completions", json=SHORT).status_code == 200
    wait_for(lambda: not any(map(command_line, left)))
    assert server.stop() == 0


def test_kill_of_the_server_takes_every_process_with_it(start):
    server = start("slow")
    server.wait_for()
    dealing = dealer(server)
    processes = [dealing, *engines(dealing)]
    server.process.kill()
    server.process.wait(PATIENCE)
    wait_for(lambda: not any(map(command_line, processes)))


@pytest.mark.parametrize(
    ("model", "message"), [("nowhere", "there is no place for replicas"), ("fails", "no such model")]
)
def test_replicas_that_cannot_be_started_are_no_start(start, model, message):
    server = start(model)
    errors = server.process.communicate(timeout=PATIENCE)[1]
    assert server.process.returncode == 1
    assert message in errors


def test_signals_drain_over_replicas_too(start):
    server = start("slow")
    server.wait_for()
    with server.stream({**LONG, "max_tokens": 20}) as (lines, thread):
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        thread.join(PATIENCE)
        stopping.join(PATIENCE)
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in lines[-2]
