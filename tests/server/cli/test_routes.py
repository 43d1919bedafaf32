import json
from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli.main import main

ALIAS = {"name": "support", "object": "route", "version": 3, "created": 1_790_000_000, "kind": "alias", "target": "a@2"}
SPLIT = {**ALIAS, "name": "test", "kind": "split", "arms": [{"target": f"a@{n}", "weight": 1} for n in range(1, 7)]}
del SPLIT["target"]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PEFTSERVE_URL", "PEFTSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def test_list_is_a_table(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/routes"] = 200, {"data": [ALIAS, SPLIT]}
    assert main(["routes", "list", "--url", stub.url]) == 0
    heading, alias, split = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "VERSION", "KIND", "LEADS", "TO", "CREATED"]
    assert alias.split()[:4] == ["support", "3", "alias", "a@2"]
    assert "a@1, a@2, a@3, a@4 and 2 more" in split
    stub.answers["GET", "/v1/routes"] = 200, {"data": []}
    assert main(["routes", "list", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "no routes\n"


def test_show_is_json(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/routes/support"] = 200, ALIAS
    assert main(["routes", "show", "support", "--url", stub.url]) == 0
    assert json.loads(capsys.readouterr().out) == ALIAS


@pytest.mark.parametrize("by_file", [True, False])
def test_set_takes_a_file_or_json(stub: Any, tmp_path: Path, by_file: bool, capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"kind": "alias", "target": "a@2"})
    (tmp_path / "route.json").write_text(body)
    stub.answers["PUT", "/v1/routes/support"] = 201, ALIAS
    given = str(tmp_path / "route.json") if by_file else body
    assert main(["routes", "set", "support", given, "--url", stub.url]) == 0
    assert stub.asked[0].body == body.encode()
    assert capsys.readouterr().out == "support@3: alias, a@2\n"


def test_set_says_what_is_neither(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "set", "support", "nowhere.json"]) == 2
    assert "nowhere.json is no JSON object, and no file that can be read" in capsys.readouterr().err


def test_remove(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["DELETE", "/v1/routes/a"] = 200, {}
    stub.answers["DELETE", "/v1/routes/b?force=true"] = 200, {}
    assert main(["routes", "remove", "a", "--url", stub.url]) == 0
    assert main(["routes", "remove", "b", "--force", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "removed a\nremoved b\n"
    assert main(["routes", "remove", "c", "--url", stub.url]) == 1


def test_explain(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [{"target": "json", "score": 0.07}, {"target": "sql", "score": 0.613}]
    answer = {"route": "auto", "version": 2, "chosen": "sql@1", "adapters": [], "arm": 1, "scores": scores}
    stub.answers["POST", "/v1/routes/auto/explain"] = 200, answer
    assert main(["routes", "explain", "auto", "SELECT name", "--user", "ann", "--url", stub.url]) == 0
    assert json.loads(stub.asked[0].body) == {"prompt": "SELECT name", "user": "ann"}
    assert capsys.readouterr().out == "auto@2 chooses sql@1 (arm 1)\n  0.613  sql\n  0.070  json\n"
