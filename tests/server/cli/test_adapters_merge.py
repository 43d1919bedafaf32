import io
import json
import sys
from typing import Any

import pytest

from peftserve.server.cli import adapters_merge
from peftserve.server.cli.main import main

CARD = {"name": "both", "version": 3, "method": "LORA", "rank": 8, "modules": 4}
JOB = {"id": "job-1", "status": "queued", "progress": 0.0, "result": None, "error": None}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters_merge, "PAUSE", 0.001)
    monkeypatch.setenv("NO_PROXY", "*")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_merge_is_asked_for_and_followed(
    stub: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.answers["POST", "/v1/adapters/merge"] = 202, JOB
    stub.answers["GET", "/v1/jobs/job-1"] = 200, {**JOB, "status": "succeeded", "progress": 1.0, "result": CARD}
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    options = ["--type", "ties", "--density", "0.3", "--majority-sign-method", "frequency", "--seed", "7"]
    assert main(["adapters", "merge", "both", "a=0.7", "b@2=-1", "c", *options, "--url", stub.url]) == 0
    assert capsys.readouterr().out == "both@3: LORA, rank 8, 4 modules\n"
    assert json.loads(stub.asked[0].body) == {
        "name": "both",
        "adapters": [{"name": "a", "weight": 0.7}, {"name": "b@2", "weight": -1.0}, {"name": "c", "weight": 1.0}],
        "combination_type": "ties",
        "density": 0.3,
        "majority_sign_method": "frequency",
        "seed": 7,
    }
    shown = terminal.getvalue()
    assert "merging" in shown
    assert shown.endswith("\x1b[2K")  # nothing of it stays


def test_failures_are_sentences_and_an_interrupt_cancels(
    stub: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["adapters", "merge", "both", "a", "--url", stub.url]
    stub.answers["POST", "/v1/adapters/merge"] = 202, {**JOB, "status": "failed", "error": {"message": "no use"}}
    assert main(command) == 1
    assert capsys.readouterr().err == "peftserve: no use\n"  # and no bar, as this is no terminal
    stub.answers["POST", "/v1/adapters/merge"] = 202, {**JOB, "status": "cancelled"}
    assert main(command) == 1
    assert "cancelled" in capsys.readouterr().err

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    stub.answers["POST", "/v1/adapters/merge"] = 202, JOB
    stub.answers["DELETE", "/v1/jobs/job-1"] = 200, {**JOB, "status": "cancelled"}
    monkeypatch.setattr(adapters_merge.time, "sleep", interrupt)
    assert main(command) == 130
    assert stub.asked[-1].method == "DELETE"


def test_a_weight_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["adapters", "merge", "both", "a=much"])
    assert "'a=much': the weight behind '=' is no number" in capsys.readouterr().err
