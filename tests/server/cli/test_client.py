"""What can go wrong between a command and a server: one line, and a status that says whose fault it is."""

from typing import Any

import pytest

from peftserve.server.cli.client import Server
from peftserve.server.cli.errors import FAILED, UNREACHABLE, USAGE, CommandError
from peftserve.server.cli.main import main


@pytest.fixture(autouse=True)
def _directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("PEFTSERVE_API_KEY", raising=False)


@pytest.mark.parametrize("words", [["adapters", "list"], ["bench", "serve", "--models", "m"]])
@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("http://[::", USAGE, "is no address of a server"),
        ("http://here:port", USAGE, "is no address of a server"),
        ("here", USAGE, "is no address of a server"),
        ("http://127.0.0.1:9", UNREACHABLE, "no answer from http://127.0.0.1:9"),
    ],
)
def test_addresses(words: list[str], url: str, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--url", url]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["adapters", "list"], ["bench", "serve", "--models", "m"]])
@pytest.mark.parametrize("key", ["ключ\x01", "sk-1\n"])
def test_a_key_that_no_header_can_have(
    words: list[str], key: str, stub: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEFTSERVE_API_KEY", key)
    assert main([*words, "--url", stub.url]) == USAGE
    error = capsys.readouterr().err
    assert "--api-key" in error
    assert key.strip() not in error
    assert stub.asked == []


def test_a_key_is_sent_in_utf_8_as_servers_read_it(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTSERVE_API_KEY", "ключ")
    stub.answers["GET", "/v1/adapters"] = 200, b'{"data": []}'
    assert main(["adapters", "list", "--url", stub.url]) == 0
    assert stub.asked[0].headers["authorization"].encode("latin-1").decode() == "Bearer ключ"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>welcome</html>", "is no peftserve server"),
        (200, b"\xff\xfe\xfd", "is no peftserve server"),
        (200, b"[]", "is no peftserve server"),
        (200, b'{"status": "ok"}', "is no peftserve server"),
        (200, b'{"data": [5]}', "is no peftserve server"),
        (301, b"", "the server answered 301"),
    ],
)
def test_servers_of_something_else(
    stub: Any, status: int, body: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.answers["GET", "/v1/adapters"] = status, body
    assert main(["adapters", "list", "--url", stub.url]) == FAILED
    assert said in capsys.readouterr().err


def test_a_stream_of_something_else(stub: Any) -> None:
    for data, said in (
        (b"<html>", "no peftserve server"),
        (b"5", "no peftserve server"),
        (b'{"error": "busy"}', "busy"),
    ):
        stub.answers["POST", "/x"] = 200, b"data: " + data + b"\n\n"
        with Server(stub.url) as server, pytest.raises(CommandError, match=said) as raised:
            list(server.events("/x", {}))
        assert raised.value.exit_code == FAILED


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": "half \ud800 a pair"}])
def test_what_no_request_can_hold(stub: Any, body: Any) -> None:
    with Server(stub.url) as server, pytest.raises(CommandError, match="cannot be sent") as raised:
        server.call("POST", "/x", json=body)
    assert raised.value.exit_code == USAGE
    assert stub.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chat", "snake", "--temperature", "nan"], "--temperature: 'nan' is no number"),
        (["adapters", "merge", "x", "sql=nan", "snake"], "'sql=nan'"),
        (["adapters", "merge", "x", "sql", "--density", "inf"], "--density: 'inf' is no number"),
        (["top", "--interval", "nan"], "--interval: 'nan' is no number"),
        (["bench", "serve", "--models", "m", "--rate", "nan"], "--rate: 'nan' is no number"),
    ],
)
def test_numbers_are_numbers(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == USAGE
    assert said in error
    assert error.count("\n") == 1
