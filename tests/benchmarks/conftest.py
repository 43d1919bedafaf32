"""The scripts in benchmarks/ as modules, and a server that they can start."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

name, port, log, tokens = sys.argv[1:5]

def note(what):
    with open(log, "a") as out:
        out.write(f"{name} {what}\\n")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        note(json.dumps([body["model"], body["prompt"]]))
        usage = {"completion_tokens": body["max_tokens"], "prompt_tokens": len(body["prompt"])}
        events = [{"choices": [{"text": "a"}]}] * int(tokens) + [{"choices": [], "usage": usage}]
        self.answer("".join(f"data: {json.dumps(event)}\\n\\n" for event in events).encode())

    def answer(self, content):
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass

note("starts")
print("listening", flush=True)
ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    return lambda name: import_module(f"benchmarks.{name}")


@pytest.fixture
def server_command(tmp_path: Path) -> Callable[..., str]:
    """A command of a server of a name, which answers with so many chunks and writes what it is asked to `log`."""
    (tmp_path / "server.py").write_text(SERVER)
    return lambda name, tokens=2: f"{sys.executable} -S {tmp_path}/server.py {name} {{port}} {tmp_path}/log {tokens}"
