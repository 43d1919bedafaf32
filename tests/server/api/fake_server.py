"""Servers in real processes, around the engine of `fake_engine_process.py`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

SCRIPT = Path(__file__).with_name("fake_server_process.py")
PATIENCE = 120  # seconds; a busy machine takes 30 for a start
LONG = {"prompt": [5, 6], "max_tokens": 60, "stream": True}  # 3 s and more on the slow engine


class Server:
    """A server around the fake engine, with a client."""

    def __init__(self, process, port):
        self.process = process
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, verify=False)

    def wait_for(self, path="/health/ready", status=200):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get(path).status_code == status:
                    return
            time.sleep(0.02)
        raise TimeoutError(path)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    @property
    def children(self):
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def engines(self):
        """The processes of engines."""
        return [child for child in self.children if b"fake_engine" in _command_line(child)]

    @contextlib.contextmanager
    def stream(self, body=LONG):
        """A stream in a thread: a list that holds its lines, and the thread."""
        lines, begun = [], threading.Event()

        def read():
            with (
                contextlib.suppress(httpx.TransportError),
                self.http.stream("POST", "/v1/completions", json=body) as response,
            ):
                for line in filter(None, response.iter_lines()):
                    lines.append(line)
                    begun.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert begun.wait(PATIENCE)
        yield lines, thread
        thread.join(PATIENCE)


@contextlib.contextmanager
def starting(folder_of_all):
    """Yield what starts servers on one state folder, one after the other, and end what is left of them."""
    with contextlib.ExitStack() as stack:

        def start(model="fake", grace=10.0, preload=(), api_workers=1, folder=None, **more):
            port = _hold_port(stack)
            options = {"model": model, "state": str(folder_of_all / "state"), "port": port, "preload": preload}
            options |= {"grace": grace, "api_workers": api_workers, **more}
            environment = {**os.environ, **({"TMPDIR": str(folder)} if folder else {})}
            command = [sys.executable, str(SCRIPT), json.dumps(options)]
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
            stack.callback(process.kill)
            server = Server(process, port)
            stack.callback(server.http.close)
            return server

        yield start


def _hold_port(stack):
    """A free port, which the system gives to no other program: a socket beside which a server can listen holds it."""
    holder = stack.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder.getsockname()[1]


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid):
    """Whether a process runs; one that has ended may wait for whoever inherits it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def _command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
