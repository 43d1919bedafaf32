"""Traces as a collector gets them: OTLP over HTTP, to a few lines of a server."""

import http.server
import sys
import threading
import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from peftserve.server.api.watching import traces
from peftserve.server.api.watching.record import SequenceRecord
from peftserve.server.api.watching.traces import MissingPackage, open_traces, phases, traces_url

BODY = {"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, "temperature": 0.5}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """spans: all that came. resources: by service. paths: that were asked for."""

    def __init__(self):
        self.spans, self.paths, self.services = [], set(), set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                collector.paths.add(self.path)
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    collector.services.add(attributes(resource.resource)["service.name"])
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def attributes(thing):
    kinds = {"string_value", "int_value", "double_value", "array_value"}
    found = {}
    for pair in thing.attributes:
        (kind,) = kinds & {pair.value.WhichOneof("value")}
        value = getattr(pair.value, kind)
        found[pair.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


async def test_a_request_is_a_span_with_what_it_waited_for_and_did_in_it(make_server, collector, monkeypatch):
    monkeypatch.setattr(traces, "CLOSING_SECONDS", 60)
    began = time.time_ns()
    async with make_server(otlp_endpoint=collector.url) as server:
        await server.upload("sql")
        traced = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-9"}
        body = {**BODY, "model": "sql", "n": 2}
        assert (await server.http.post("/v1/completions", json=body, headers=traced)).status_code == 200
        unsampled = {"traceparent": f"00-{'a' * 32}-{PARENT}-00"}
        await server.http.post("/v1/completions", json=BODY, headers=unsampled)
        await server.http.get("/v1/nowhere/at/all", headers={"traceparent": "nonsense"})
    assert collector.paths == {"/v1/traces"}
    assert collector.services == {"peftserve"}
    mine = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    (root,) = [span for span in mine if span.parent_span_id.hex() == PARENT]
    assert (root.name, root.kind, root.status.code) == ("POST /v1/completions", root.SPAN_KIND_SERVER, 0)
    said = attributes(root)
    latencies = {name: said.pop(name) for name in list(said) if name.startswith("gen_ai.latency")}
    assert latencies["gen_ai.latency.time_in_queue"] == 0.001
    assert 0 < latencies["gen_ai.latency.time_to_first_token"] <= latencies["gen_ai.latency.e2e"]
    assert said.pop("user_agent.original").startswith("python-httpx")
    assert said == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/completions",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "peftserve",
        "gen_ai.request.id": "r-9",
        "gen_ai.request.model": "sql",
        "gen_ai.response.model": "sql@1",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.n": 2,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.prompt_tokens": 3,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.usage.completion_tokens": 8,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.num_sequences": 2,
        "peftserve.adapter.name": "sql",
        "peftserve.adapter.version": 1,
    }
    inside = [span for span in mine if span.parent_span_id == root.span_id]
    assert [span.name for span in inside] == ["queue", "prefill", "decode"] * 2
    assert [attributes(span)["peftserve.sequence"] for span in inside] == [0] * 3 + [1] * 3
    for span in inside:
        assert began <= root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano <= time.time_ns()
    assert not [span for span in collector.spans if span.trace_id.hex() == "a" * 32]
    (lost,) = [span for span in collector.spans if span.name == "GET /v1/nowhere"]
    assert attributes(lost)["error.type"] == "404"


async def test_a_collector_that_is_not_there_stops_nothing(make_server, monkeypatch):
    monkeypatch.setattr(traces, "CLOSING_SECONDS", 0.1)
    async with make_server(otlp_endpoint="http://127.0.0.1:9") as server:
        for _ in range(3):
            assert (await server.http.post("/v1/completions", json=BODY)).status_code == 200


def test_the_phases_of_a_sequence_follow_each_other():
    sequence = SequenceRecord(10.0)
    assert list(phases(sequence)) == []  # refused before it began
    sequence.queue_seconds, sequence.load_seconds = 2.0, 1.5
    sequence.first, sequence.last, sequence.tokens = 13.0, 15.0, 3
    assert list(phases(sequence)) == [
        ("adapter load", 10.0, 11.5),
        ("queue", 11.5, 12.0),
        ("prefill", 12.0, 13.0),
        ("decode", 13.0, 15.0),
    ]
    scored = SequenceRecord(10.0, last=11.0, queue_seconds=5.0)  # clocks of two processes, and no tokens
    assert list(phases(scored)) == [("queue", 10.0, 11.0), ("prefill", 11.0, 11.0)]


@pytest.mark.parametrize("endpoint", ["http://a:4318", "http://a:4318/", "http://a:4318/v1/traces"])
def test_traces_go_below_the_endpoint(endpoint):
    assert traces_url(endpoint) == "http://a:4318/v1/traces"
    assert traces_url("http://a/otlp") == "http://a/otlp/v1/traces"


def test_without_the_package_the_start_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingPackage, match=r"pip install 'peftserve\[otel\]'"):
        open_traces("http://127.0.0.1:9", "1", 0)
    assert traces.SERVICE == "peftserve"
