import json
from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli.main import main

CARD = {
    "name": "sql",
    "version": 2,
    "digest": "ab" * 32,
    "method": "LORA",
    "rank": 16,
    "size": 3 << 20,
    "state": "device",
    "requests_running": 3,
    "created": 1_790_000_000,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 2000)
    return tmp_path


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PEFTSERVE_URL", "PEFTSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def test_list_is_a_table(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/adapters"] = 200, {"data": [CARD, {**CARD, "name": "a-longer-name"}]}
    assert main(["adapters", "list", "--url", stub.url]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "VERSION", "METHOD", "RANK", "SIZE", "STATE", "RUNNING", "CREATED"]
    assert first.split()[:7] == ["sql", "2", "LORA", "16", "3.00MB", "device", "3"]
    assert second.index("LORA") == heading.index("METHOD")


def test_load_and_restore(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["POST", "/v1/adapters/sql@2/load"] = 200, CARD
    stub.answers["POST", "/v1/adapters/sql/restore"] = 200, {"data": [{**CARD, "version": 1}, CARD]}
    assert main(["adapters", "load", "sql@2", "--url", stub.url]) == 0
    assert main(["adapters", "restore", "sql", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "sql@2 is on the device\nrestored sql@1\nrestored sql@2\n"


def test_list_of_nothing(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/adapters"] = 200, {"data": []}
    assert main(["adapters", "list", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "no adapters\n"


def test_add_uploads_both_files(stub: Any, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["POST", "/v1/adapters"] = 201, CARD
    assert main(["adapters", "add", "sql", str(checkpoint), "--url", stub.url, "--api-key", "k"]) == 0
    (asked,) = stub.asked
    assert asked.headers["authorization"] == "Bearer k"
    assert asked.headers["content-type"].startswith("multipart/form-data")
    assert b'name="name"\r\n\r\nsql\r\n' in asked.body
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert f'name="files"; filename="{name}"'.encode() in asked.body
        assert (checkpoint / name).read_bytes() in asked.body
    assert capsys.readouterr().out == "sql@2: LORA, rank 16, 3.00MB\n"


def test_add_uploads_the_experts_of_a_router(stub: Any, checkpoint: Path) -> None:
    stub.answers["POST", "/v1/adapters"] = 201, CARD
    (checkpoint / "adapter_config.json").write_text('{"arrow_config": {"task_adapter_names": ["task_0"]}}')
    (checkpoint / "task_0").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (checkpoint / "task_0" / name).write_text(name)
    assert main(["adapters", "add", "sql", str(checkpoint), "--url", stub.url]) == 0
    (asked,) = stub.asked
    for name in ("adapter_config.json", "task_0/adapter_config.json", "task_0/adapter_model.safetensors"):
        assert f'name="files"; filename="{name}"'.encode() in asked.body


def test_add_says_what_is_missing(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "adapter_model.safetensors").rename(checkpoint / "adapter_model.bin")
    assert main(["adapters", "add", "sql", str(checkpoint)]) == 2
    assert "pickled weights" in capsys.readouterr().err
    (checkpoint / "adapter_config.json").unlink()
    assert main(["adapters", "add", "sql", str(checkpoint)]) == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err


def test_show(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/adapters/sql@2"] = 200, CARD
    assert main(["adapters", "show", "sql@2", "--url", stub.url]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown.keys() == CARD.keys()
    assert shown["rank"] == "16"


def test_remove(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["DELETE", "/v1/adapters/a"] = 200, {}
    stub.answers["DELETE", "/v1/adapters/b"] = 200, {}
    assert main(["adapters", "remove", "a", "b", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "removed a\nremoved b\n"


@pytest.mark.parametrize(("choice", "sent"), [(["sql"], "sql"), (["--none"], None)])
def test_default_is_set(stub: Any, choice: list[str], sent: str | None) -> None:
    stub.answers["PUT", "/v1/default-adapter"] = 200, {"adapter": sent}
    assert main(["adapters", "default", *choice, "--url", stub.url]) == 0
    assert json.loads(stub.asked[0].body) == {"adapter": sent}


def test_default_is_shown(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/default-adapter"] = 200, {"adapter": None}
    assert main(["adapters", "default", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "none: the bare base\n"


def test_a_refusal_is_the_servers_message(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "show", "x/y", "--url", stub.url]) == 1
    assert capsys.readouterr().err == "peftserve: no /v1/adapters/x%2Fy here\n"


def test_an_answer_without_an_envelope(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/adapters"] = 502, b"<html>"
    assert main(["adapters", "list", "--url", stub.url]) == 1
    assert "502" in capsys.readouterr().err


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "list", "--url", "http://127.0.0.1:9"]) == 3
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err


def test_remove_by_force(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["DELETE", "/v1/adapters/a?force=true"] = 200, {}
    assert main(["adapters", "remove", "a", "--force", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "removed a\n"


@pytest.mark.parametrize(("choice", "sent"), [(["--to", "1"], 1), ([], None)])
def test_rollback(stub: Any, choice: list[str], sent: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["POST", "/v1/adapters/sql/rollback"] = 201, {**CARD, "version": 3}
    assert main(["adapters", "rollback", "sql", *choice, "--url", stub.url]) == 0
    assert json.loads(stub.asked[0].body) == {"to": sent}
    assert capsys.readouterr().out == "sql@3: LORA, rank 16, 3.00MB\n"
