import json
import threading
from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli.main import main

STREAM = b"""data: {"choices": [{"text": "a"}]}

data: {"choices": [{"text": "b"}]}

data: {"choices": [], "usage": {"completion_tokens": 5}}

data: [DONE]

"""


def run(stub: Any, *more: str) -> int:
    sizes = ["--num-requests", "6", "--concurrency", "2", "--prompt-tokens", "8", "--output-tokens", "5"]
    return main(["bench", "serve", "--base-url", stub.url, "--models", "m,n", *sizes, *more])


def test_a_run_asks_every_model_in_turn(stub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/models"] = 200, {"data": []}
    stub.answers["POST", "/v1/completions"] = 200, STREAM
    assert run(stub, "--out", str(tmp_path / "out.json")) == 0
    bodies = [json.loads(asked.body) for asked in stub.asked if asked.method == "POST"]
    assert sorted(body["model"] for body in bodies) == ["m"] * 3 + ["n"] * 3
    assert {len(body["prompt"]) for body in bodies} == {8}
    assert all(body["ignore_eos"] and body["max_tokens"] == 5 for body in bodies)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["all"]["output_tokens"] == 30
    assert report["models"]["n"]["requests"] == 3
    assert "6 requests in" in capsys.readouterr().out


def test_prompts_are_the_same_for_one_seed(stub: Any) -> None:
    stub.answers["GET", "/v1/models"] = 200, {"data": []}
    stub.answers["POST", "/v1/completions"] = 200, STREAM
    run(stub, "--concurrency", "1")
    run(stub, "--concurrency", "1")
    bodies = [asked.body for asked in stub.asked if asked.method == "POST"]
    assert bodies[:6] == bodies[6:]
    assert len({*bodies}) == 6


@pytest.mark.parametrize(
    "answer", [(500, {"error": {"message": "broken"}}), (200, b'data: {"error": {"message": "broken"}}\n')]
)
def test_failures_are_counted_and_told(stub: Any, answer: tuple[int, Any], capsys: pytest.CaptureFixture[str]) -> None:
    stub.answers["GET", "/v1/models"] = 200, {"data": []}
    stub.answers["POST", "/v1/completions"] = answer
    assert run(stub) == 1
    assert "broken" in capsys.readouterr().out


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9", "--models", "m"]) == 3
    assert "no answer" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--num-requests", "--concurrency", "--prompt-tokens", "--output-tokens"])
def test_counts_are_positive(stub: Any, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stub, flag, "0") == 2
    assert f"{flag}: 0 is not 1 or more" in capsys.readouterr().err


def open_loop(stub: Any, *more: str) -> int:
    stub.answers["GET", "/v1/models"] = 200, {"data": []}
    flags = ["--rate", "200", "--prompt-tokens", "2-6", "--output-tokens", "5", "--slo-ttft", "600", *more]
    return main(["bench", "serve", "--base-url", stub.url, *flags])


def test_an_open_loop_asks_without_waiting_for_answers(stub: Any, tmp_path: Path) -> None:
    all_there = threading.Barrier(8, timeout=60)  # it would break if a request waited for another's answer
    stub.answers["POST", "/v1/completions"] = 200, lambda _: all_there.wait() >= 0 and STREAM
    out = tmp_path / "out.json"
    assert open_loop(stub, "--models", "m{0..7}", "--num-requests", "8", "--cv", "2", "--out", str(out)) == 0
    report = json.loads(out.read_text())
    assert report["all"]["slo_attainment"] == 1
    assert report["generator"]["late_ms"].keys() == {"mean", "p50", "p90", "p99"}
    assert report["workload"]["rate"] == 200
    assert (report["asked"]["requests"], report["asked"]["output_tokens"]) == (8, 40)
    assert [*report["models"]] == [f"m{i}" for i in range(8)]


def test_a_saved_trace_asks_another_server_the_same(stub: Any, tmp_path: Path) -> None:
    stub.answers["POST", "/v1/completions"] = 200, STREAM
    file, out = str(tmp_path / "trace.jsonl"), tmp_path / "out.json"
    assert open_loop(stub, "--models", "m,n", "--num-requests", "6", "--save-trace", file) == 0
    other = ["--rename", "m=x", "--dialect", "openai", "--out", str(out)]
    assert main(["bench", "serve", "--base-url", stub.url + "/v1/", "--trace", file, *other]) == 0
    bodies = [json.loads(asked.body) for asked in stub.asked if asked.method == "POST"]
    assert sorted(str(b["prompt"]) for b in bodies[:6]) == sorted(str(b["prompt"]) for b in bodies[6:])
    assert {body["model"] for body in bodies[6:]} == {"x", "n"}
    assert json.loads(out.read_text())["models"].keys() == {"m", "n"}


def test_a_picture(stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.answers["POST", "/v1/completions"] = 200, STREAM
    assert open_loop(stub, "--models", "m", "--num-requests", "2", "--plot", str(tmp_path / "run.svg")) == 0
    assert (tmp_path / "run.svg").stat().st_size
    monkeypatch.setattr("peftserve.server.cli.load.report.can_plot", lambda: False)
    assert open_loop(stub, "--models", "m", "--plot", str(tmp_path / "no.svg")) == 2


def test_a_mistake_in_a_rename(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stub, "--rename", "m") == 2
    assert "--rename: 'm' is not OLD=NEW" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--out", "--save-trace"])
def test_where_the_result_goes_is_looked_at_before_the_run(
    stub: Any, tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stub, flag, str(tmp_path / "missing" / "x.json")) == 2
    assert f"{flag}: cannot write" in capsys.readouterr().err
    assert stub.asked == []
