"""A real server with its real engine: what the engine says of its times gets to the log and the traces."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL
from tests.server.api.watching.test_traces import Collector, attributes

BODY = {"prompt": [20, 30, 40], "max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.mark.slow
def test_every_process_logs_and_traces_what_the_engine_did(oracle: ModuleType, device: str, tmp_path: Path) -> None:
    collector = Collector()
    flags = ["--device", device, "--api-workers", "2", "--access-log", "json", "--otlp-endpoint", collector.url]
    flags += ["--adapter", f"sql={DEMO_ADAPTERS['sql']}"]
    server = oracle.RunningServer.start(DEMO_MODEL, tmp_path / "state", tmp_path / "log", *flags)
    try:
        for number in range(8):
            headers = {"connection": "close", "x-request-id": f"r-{number}"}  # to both processes
            answer = server.client.post("/v1/completions", json={**BODY, "model": "sql"}, headers=headers)
            assert answer.status_code == 200
        assert server.client.get("/v1/adapters/sql", headers={"x-request-id": "card"}).status_code == 200
    finally:
        status = server.stop()
        collector.close()
    assert status == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    found = {line["id"]: line for line in lines}
    assert {f"r-{number}" for number in range(8)} | {"card"} <= found.keys()
    assert len([line for line in lines if line["id"] == "card"]) == 1  # and not by who passes it on, too
    for number in range(8):
        line = found[f"r-{number}"]
        assert (line["adapter"], line["completion_tokens"], line["prompt_tokens"]) == ("sql@1", 6, 3)
        assert 0 <= line["queue_seconds"] < line["first_token_seconds"] <= line["seconds"]
    roots = {attributes(span)["gen_ai.request.id"]: span for span in collector.spans if not span.parent_span_id}
    assert roots["r-0"].trace_id.hex() == found["r-0"]["trace_id"]
    inside = {span.name for span in collector.spans if span.parent_span_id == roots["r-0"].span_id}
    assert inside == {"adapter load", "queue", "prefill", "decode"}  # the first use brings the adapter to the device
    inside = {span.name for span in collector.spans if span.parent_span_id == roots["r-7"].span_id}
    assert inside == {"queue", "prefill", "decode"}
    assert attributes(roots["r-7"])["gen_ai.latency.time_in_model_prefill"] > 0
