"""A stub server that keeps adapters in tiers, and an adapter of two numbers."""

import contextlib
import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

SLOTS, ON_HOST = 2, 4
EVENT = b'data: {"choices": [{"text": "a"}]}\n\n'


class TieredServer(ThreadingHTTPServer):
    """Keeps adapters as a real server does, and answers at once. device, host: names, used longest ago first.

    contents: of what was uploaded, by name. slow: seconds for a token.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _TieredHandler)
        self.lock = threading.Lock()
        self.contents: dict[str, bytes] = {}
        self.device: list[str] = []
        self.host: list[str] = []
        self.loads = 0
        self.slow = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, content: bytes) -> None:
        with self.lock:
            self.contents[name] = content
            self.host = [*self.host, name][-ON_HOST:]

    def remove(self, name: str) -> None:
        with self.lock:
            del self.contents[name]
            self.device, self.host = ([n for n in tier if n != name] for tier in (self.device, self.host))

    def use(self, name: str) -> None:
        with self.lock:
            if name not in self.device:
                self.loads += 1
                self.host = [*(n for n in self.host if n != name), name][-ON_HOST:]
            self.device = [*(n for n in self.device if n != name), name][-SLOTS:]

    def state(self, name: str) -> str:
        return "device" if name in self.device else "host" if name in self.host else "disk"


class _TieredHandler(BaseHTTPRequestHandler):
    server: TieredServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/adapters":
            found = re.search(rb'name="name"\r\n\r\n([^\r]+)', body)
            assert found
            self.server.add(found[1].decode(), body)
            return self._answer(b"{}", 201)
        asked = json.loads(body)
        if asked["model"] not in self.server.contents:
            return self._answer(b'{"error": {"message": "no such model"}}', 404)
        self.server.use(asked["model"])
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that left
            for _ in range(asked["max_tokens"]):
                self.wfile.write(EVENT)
                time.sleep(self.server.slow)
        return None

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/metrics":
            return self._answer(f"peftserve_adapter_loads_total {self.server.loads}.0\n".encode())
        after = parse_qs(url.query)["after"][0]
        names = sorted(name for name in self.server.contents if name > after)
        cards = [{"name": name, "state": self.server.state(name)} for name in names]
        return self._answer(json.dumps({"data": cards}).encode())

    def do_DELETE(self) -> None:
        self.server.remove(self.path.rpartition("/")[2])
        self._answer(b"{}")

    def _answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tiered() -> Iterator[TieredServer]:
    with TieredServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter's: one tensor of two numbers."""
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    header: dict[str, Any] = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    (path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"12345678")
    return path
