"""The end of the server in real processes: at any moment, and whatever there is to wait for."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from peftserve.server.api.ending import Ending, heed_signals
from tests.server.api.fake_server import PATIENCE, runs, wait_until


async def test_the_grace_time_has_a_part_for_what_comes_behind_the_requests():
    assert [Ending(grace, print).for_requests for grace in (25.0, 10.0, 0.2)] == [21.0, 7.5, 0.2]
    ending = heed_signals(3600.0, print)
    assert ending.left == float("inf")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(ending.first.wait(), PATIENCE)
    assert 3500 < ending.left <= 3600
    ending.fail(4)  # what comes later does not put it off
    assert 3500 < ending.left <= 3600
    ending._timer.cancel()


SCRIPT = """
import asyncio, os, signal, time
from peftserve.server.api.ending import heed_signals

async def main():
    ending = heed_signals({grace}, lambda: print("last", flush=True))
    os.kill(os.getpid(), signal.SIGTERM)
    await ending.first.wait()
    {second}
    await asyncio.sleep(0.1)
    time.sleep(3600)  # nothing hears a signal any more

asyncio.run(main())
"""


@pytest.mark.parametrize(("grace", "second"), [(1, ""), (3600, "os.kill(os.getpid(), signal.SIGINT)")])
def test_a_process_that_waits_for_something_ends_all_the_same(grace, second):
    script = SCRIPT.format(grace=grace, second=second)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "last\n")


@pytest.mark.slow
def test_nobody_keeps_the_server_from_ending(start):
    """A client that does not read, an upload that does not end, an engine that is stopped, a stream, two processes."""
    server = start("flood", api_workers=2, grace=4.0)
    server.wait_for()
    children = server.children
    address = server.http.base_url.host, server.http.base_url.port
    body = b'{"prompt": [5], "max_tokens": 1000000, "stream": true, "ignore_eos": true}'
    heads = [
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body),
        b"POST /v1/adapters HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        b"content-length: 100000\r\n\r\n--b\r\n",
    ]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
        for client, head in zip(clients, heads * 4, strict=True):
            client.sendall(head)
        wait_until(lambda: len(select.select(clients[::2], [], [], 0)[0]) == 4)  # are streamed to
        os.kill(server.engines[0], signal.SIGSTOP)
        assert server.stop() == 0
    wait_until(lambda: not any(map(runs, children)))


@pytest.mark.slow
def test_a_second_signal_ends_the_server_at_once(start, tmp_path):
    server = start(f"holds:{tmp_path}/never", grace=3600.0)
    server.wait_for()
    with server.stream() as (lines, _):
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("/health/ready", 503)
        os.kill(server.engines[0], signal.SIGSTOP)
        assert server.stop() == 0
    assert '"error"' in lines[-2]
