"""Traces of requests by OpenTelemetry: one span for a request, and in it what each sequence waited for and did.

Spans are made when a request has ended, out of its record, so that none of it takes time while it runs; a thread of the
library's own sends them. Names of attributes are those of OpenTelemetry's conventions for HTTP and generative AI, and
beside them vLLM's, which its tools read.
"""

import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..http.request_ids import REQUEST_ID
from .record import RequestRecord, SequenceRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SERVICE = "peftserve"
TRACES = "/v1/traces"  # behind an endpoint, as OpenTelemetry has it
MOST_SEQUENCES = 16  # of one request, which have spans of their own
CLOSING_SECONDS = 3.0  # for a collector to take the last ones
LONGEST = 256  # characters of what a client says
PROPAGATED = ("traceparent", "tracestate")
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}

Phase = tuple[str, float, float]  # name, begin, end; of time.perf_counter()


class MissingPackage(Exception):
    """OpenTelemetry is not installed."""


class Traces:
    """What makes and sends traces. version: of this server."""

    def __init__(self, provider: "TracerProvider", version: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer: Tracer = provider.get_tracer(SERVICE, version)
        self._parent_of: Callable[[dict[str, str]], Context] = TraceContextTextMapPropagator().extract

    def __call__(self, record: RequestRecord) -> None:
        """Trace a request that has ended, if it is sampled, and note its trace."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        span = self._tracer.start_span(
            f"{record.method} {_span_path(record)}",
            self._parent_of(_carried(record)),
            SpanKind.SERVER,
            attributes=_known_at_start(record),
            start_time=_nanoseconds(record, record.begun),
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        if span.is_recording():
            _describe(span, record)
            inside = set_span_in_context(span)
            for number, sequence in enumerate(record.sequences[:MOST_SEQUENCES]):
                self._trace_sequence(record, number, sequence, inside)
        span.end(_nanoseconds(record, record.begun + record.seconds))

    def _trace_sequence(self, record: RequestRecord, number: int, sequence: SequenceRecord, inside: "Context") -> None:
        for name, begin, end in phases(sequence):
            which = {"peftserve.sequence": number}
            span = self._tracer.start_span(name, inside, attributes=which, start_time=_nanoseconds(record, begin))
            span.end(_nanoseconds(record, end))

    def close(self) -> None:
        """Send what has not been sent yet, for CLOSING_SECONDS at most. To be called on a thread, as it waits."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)


def open_traces(endpoint: str, version: str, instance: int) -> Traces:
    """Return what sends traces to an endpoint by OTLP over HTTP. instance: number of this process.

    What OpenTelemetry's own variables say of sampling, batches, headers and the service's name holds.
    Raises MissingPackage.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingPackage(
            "traces need OpenTelemetry, which is not installed: pip install 'peftserve[otel]', or leave out "
            "--otlp-endpoint and OTEL_EXPORTER_OTLP_ENDPOINT"
        ) from None
    defaults = Resource({"service.name": SERVICE, "service.version": version, "service.instance.id": str(instance)})
    resource = defaults.merge(Resource.create({})) if _has_name() else defaults
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=traces_url(endpoint))))
    return Traces(provider, version)


def traces_url(endpoint: str) -> str:
    """Return where traces go: below the endpoint, unless it says already."""
    bare = endpoint.rstrip("/")
    return bare if bare.endswith(TRACES) else bare + TRACES


def phases(sequence: SequenceRecord) -> Iterator[Phase]:
    """Yield what a sequence did, one after the other: queue, adapter load, prefill, decode; those that it came to."""
    now, last = sequence.begun, sequence.last
    if sequence.queue_seconds is None or last is None:
        return
    first = last if sequence.first is None else sequence.first
    started = min(now + sequence.queue_seconds, first)
    loaded = min(now + sequence.load_seconds, started)
    if sequence.load_seconds:
        yield "adapter load", now, loaded
    yield "queue", loaded, started
    yield "prefill", started, first
    if sequence.tokens > 1:
        yield "decode", first, last


def _has_name() -> bool:
    return bool(os.environ.get("OTEL_SERVICE_NAME") or os.environ.get("OTEL_RESOURCE_ATTRIBUTES"))


def _carried(record: RequestRecord) -> dict[str, str]:
    headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in record.scope["headers"])
    return {name: value for name, value in headers if name in PROPAGATED}


def _nanoseconds(record: RequestRecord, moment: float) -> int:
    """Return a moment of time.perf_counter() as nanoseconds since 1970."""
    return int(record.began * 1e9) + int((moment - record.begun) * 1e9)


def _span_path(record: RequestRecord) -> str:
    """Return the path in the name of a span, of which there are to be few: none with names of adapters in it."""
    parts = record.path.split("/")
    return "/".join(parts[:3]) if len(parts) > 3 and record.path not in OPERATIONS else record.path[:LONGEST]


def _known_at_start(record: RequestRecord) -> dict[str, Any]:
    """Return what samplers may go by."""
    scope, headers = record.scope, dict(record.scope["headers"])
    client = scope.get("client")
    known = {
        "http.request.method": record.method,
        "url.path": record.path[:LONGEST],
        "url.scheme": scope["scheme"],
        "client.address": client[0] if client else None,
        "user_agent.original": headers.get(b"user-agent", b"").decode("latin-1")[:LONGEST] or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def _describe(span: "Span", record: RequestRecord) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("http.response.status_code", record.status)
    span.set_attribute("gen_ai.request.id", record.scope.get(REQUEST_ID, ""))
    if record.status >= 400:
        span.set_attribute("error.type", str(record.status))
    if record.status >= 500:
        span.set_status(StatusCode.ERROR)
    if record.sampling is not None:
        span.set_attributes({name: value for name, value in _of_model(record) if value is not None})


def _of_model(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a request to the model."""
    assert record.sampling is not None
    name, _, version = record.adapter.partition("@")
    yield "gen_ai.operation.name", OPERATIONS.get(record.path, "generate_content")
    yield "gen_ai.provider.name", SERVICE
    yield "gen_ai.request.model", record.model and record.model[:LONGEST]
    yield "gen_ai.response.model", record.adapter or None
    yield "peftserve.adapter.name", name or None
    yield "peftserve.adapter.version", int(version) if version.isdigit() else None
    yield "peftserve.route", record.route or None
    yield "gen_ai.request.max_tokens", record.sampling.max_tokens
    yield "gen_ai.request.temperature", record.sampling.temperature
    yield "gen_ai.request.top_p", record.sampling.top_p
    yield "gen_ai.request.n", record.samples
    yield "gen_ai.response.finish_reasons", [s.finish_reason for s in record.sequences if s.finish_reason] or None
    yield from _usage(record)


def _usage(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    for name, count in [
        ("input_tokens", record.prompt_tokens),
        ("prompt_tokens", record.prompt_tokens),
        ("output_tokens", record.tokens),
        ("completion_tokens", record.tokens),
        ("cache_read.input_tokens", record.cached_tokens),
        ("num_sequences", len(record.sequences)),
    ]:
        yield f"gen_ai.usage.{name}", count
    first = next((sequence for sequence in record.sequences if sequence.prefill_seconds is not None), None)
    yield "gen_ai.latency.e2e", record.seconds
    yield "gen_ai.latency.time_to_first_token", record.first_token_seconds
    yield "gen_ai.latency.time_in_queue", record.queue_seconds
    yield "gen_ai.latency.time_in_model_prefill", first and first.prefill_seconds
    if first is not None and first.first is not None and first.last is not None:
        yield "gen_ai.latency.time_in_model_decode", first.last - first.first
