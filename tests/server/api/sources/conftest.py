"""Servers that sources are fetched from: a web server with faults, a hub, and an S3 store, all on this machine."""

import contextlib
import json
import ssl
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
from moto.server import ThreadedMotoServer

COMMIT = "c0ffee" + "0" * 34


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.site.asked.append((self.path, dict(self.headers)))
        self.server.site.answer(self)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"content_length": len(body), "last_modified": formatdate(usegmt=True), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has left
            self.wfile.write(body if self.command == "GET" else b"")


class Site:
    """A web server. files: path to content. faults: path to what the next requests for it get, in turn.

    A fault is a status, `cut` (half the body and the connection is closed), `gzip`, a location to be redirected to, or
    an event to wait for. asked: paths with headers. ranges: whether parts of a file can be asked for.
    """

    def __init__(self):
        self.files, self.faults, self.asked, self.ranges = {}, {}, [], True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.site = self
        self._server.handle_error = lambda *_: None  # clients that leave, as tests have them
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def secure(self, certificate, key):
        """Speak TLS from now on."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def add(self, folder, files):
        self.files |= {f"{folder}/{name}": content for name, content in files.items()}

    def paths(self):
        """Paths of an adapter's own files: each fetch also asks once for a tokenizer's."""
        return [path for path, _ in self.asked if "/tokenizer_config.json" not in path]

    def answer(self, request):
        path = unquote(request.path.partition("?")[0])
        fault = self.faults[path].pop(0) if self.faults.get(path) else None
        content = self.files.get(path)
        match fault:
            case int():
                request.send(fault)
            case str() if ":" in fault or fault[0] == "/":
                request.send(302, location=fault)
            case threading.Event():
                fault.wait(60)
                request.send(200, b"")
            case _ if content is None:
                request.send(404)
            case "gzip":
                request.send(200, content, content_encoding="gzip")
            case "cut":
                request.send(200, content[: len(content) // 2], content_length=len(content), etag=_tag(content))
                request.close_connection = True
            case _:
                self._send(request, content)

    def _send(self, request, content):
        start = request.headers.get("range", "") if self.ranges else ""
        if not start or request.headers.get("if-range") != _tag(content):
            request.send(200, content, etag=_tag(content))
            return
        first = int(start.removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {first}-{len(content) - 1}/{len(content)}"
        request.send(206, content[first:], etag=_tag(content), content_range=span)


class Hub(Site):
    """A hub in Hugging Face's form with one repository, owner/name. token: what it asks for, if anything.

    Weights lie on another port, as they do on a hub's store; `store` is that server.
    """

    def __init__(self):
        super().__init__()
        self.token, self.store, self.revisions = None, Site(), {"main": COMMIT, COMMIT: COMMIT}
        self.describes = True  # its repositories; some mirrors have files only

    def close(self):
        super().close()
        self.store.close()

    def add(self, folder, files):
        super().add(folder, files)
        self.store.add(folder, files)

    def answer(self, request):
        path = request.path
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            request.send(401, x_error_code="RepoNotFound")
        elif path.startswith("/api/models/") and not self.describes:
            request.send(404)
        elif path.startswith("/api/models/"):
            self._describe(request, path.removeprefix("/api/models/"))
        elif path.startswith("/owner/name/resolve/") and path.split("/")[4] in self.revisions:
            self._resolve(request, "/" + path.split("/", 5)[5])
        else:
            request.send(404, x_error_code="EntryNotFound")

    def _describe(self, request, path):
        repository, _, revision = path.partition("/revision/")
        if repository != "owner/name":
            request.send(404, x_error_code="RepoNotFound")
        elif (commit := self.revisions.get(revision or "main")) is None:
            request.send(404, x_error_code="RevisionNotFound")
        else:
            request.send(200, json.dumps({"id": repository, "sha": commit}).encode(), content_type="application/json")

    def _resolve(self, request, path):
        if path not in self.files:
            request.send(404, x_error_code="EntryNotFound", x_repo_commit=COMMIT)
        elif path.endswith(".safetensors"):
            request.send(302, location=f"{self.store.url}{path}", x_repo_commit=COMMIT)
        else:
            request.send(200, self.files[path], etag=_tag(self.files[path]), x_repo_commit=COMMIT)


def _tag(content):
    return f'"{hash(content):x}"'


@pytest.fixture
def site():
    with contextlib.closing(Site()) as site:
        yield site


@pytest.fixture
def hub(monkeypatch):
    with contextlib.closing(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        yield hub


@pytest.fixture(scope="session")
def moto():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(moto, monkeypatch):
    """A bucket `adapters` of a real S3 server. `s3.add(folder, files)`."""
    import boto3

    host, port = moto.get_host_and_port()
    environ = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for name, value in {**environ, "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="adapters")

    class Bucket:
        @staticmethod
        def add(folder, files):
            for name, content in files.items():
                client.put_object(Bucket="adapters", Key=f"{folder}/{name}", Body=content)

    return Bucket


@pytest.fixture
def staged(tmp_path):
    """A staged upload in a folder of its own, of 1 MiB at most."""
    from peftserve.adapters.staging import StagedUpload

    folder = tmp_path / "staged"
    folder.mkdir()
    return StagedUpload(folder, 1 << 20)


@pytest.fixture
def contents():
    """Reads the files of a staged upload: name to content."""

    def read(staged):
        return {name: (staged.path / name).read_bytes() for name in staged.names}

    return read
