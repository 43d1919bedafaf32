import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from peftserve.adapters.files import content_digest, digest_of
from peftserve.server.cli.main import main

FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": bytes(range(256)) * 2000,
    "one/adapter_config.json": b"{ }",
    "one/adapter_model.safetensors": b"weights",
}
DIGEST = digest_of({name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()})


@pytest.fixture
def listed(stub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Let the stub have an adapter of an expert; the list may be changed."""
    for name in ("PEFTSERVE_URL", "PEFTSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    data = [{"name": name, "size": len(content)} for name, content in FILES.items()]
    body = {"object": "list", "id": "sql@3", "digest": DIGEST, "data": data}
    stub.answers["GET", "/v1/adapters/sql/files"] = 200, body
    for name, content in FILES.items():
        stub.answers["GET", f"/v1/adapters/sql@3/files/{name}"] = 200, content
    return body


def test_all_files_of_one_version_are_written(
    stub: Any, listed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapters", "export", "sql", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "sql: sql@3\n"
    assert content_digest(tmp_path / "sql") == DIGEST
    assert main(["adapters", "export", "sql", "--url", stub.url, "--out", "deep/er"]) == 0
    assert {name: (tmp_path / "deep" / "er" / name).read_bytes() for name in FILES} == FILES


def test_all_or_none(stub: Any, listed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(said: str, code: int) -> None:
        before = sorted(os.listdir(tmp_path))
        assert main(["adapters", "export", "sql", "--url", stub.url]) == code
        text = capsys.readouterr().err
        assert said in text
        assert len(text.splitlines()) == 1
        assert sorted(os.listdir(tmp_path)) == before

    last = "/v1/adapters/sql@3/files/one/adapter_model.safetensors"
    stub.answers["GET", last] = 200, b"other"
    fails("not those that were uploaded", 1)
    del stub.answers["GET", last]
    fails("no /v1/adapters/sql@3/files/one", 1)
    listed["data"].append({"name": "../evil", "size": 1})
    fails("none of an adapter", 1)
    listed["data"].pop()
    (tmp_path / "sql").mkdir()
    fails("already", 2)
    stub.answers["GET", "/v1/adapters/sql/files"] = 404, json.loads('{"error": {"message": "no sql"}}')
    fails("peftserve: no sql", 1)
