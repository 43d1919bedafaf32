"""The description of the routes in /openapi.json: declared beside each one, and made from the types that validate
and answer.

FastAPI describes paths, their parameters, and what a route's docstring says. Bodies, answers and errors are added here:
FastAPI reads no body of ours and encodes no answer, so it knows neither. Nothing of it runs for a request.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from ..http.auth import is_guarded
from ..http.errors import ErrorEnvelope
from .error_reference import ERRORS, describe_error, error_name

Json = dict[str, Any]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

JSON, TEXT, EVENTS, FORM = "application/json", "text/plain", "text/event-stream", "multipart/form-data"
BYTES = "application/octet-stream"
SCHEMAS = "#/components/schemas/"
KEY = "apiKey"  # the security scheme's name
_ATTRIBUTE = "__operation__"  # of an endpoint, which has its declaration there

DESCRIPTION = f"""
One frozen base model, every PEFT adapter on it. Every error has OpenAI's envelope; its `message` says what was wrong,
where, and what would be right. An answer with status 429 or 503 says in `Retry-After` when to try again, in seconds.

Before a request reaches its route it may be refused with 400 (`invalid_http`), 405, 408 (a head or body that comes too
slowly), 414, 431, 429 (too many requests that wait on one connection) or 503 (too many connections), in the same
envelope. Numbers and truth values may be sent as text that spells them. Bodies are read as JSON whatever their
`Content-Type` says, but for `{FORM}`.
""".strip()

TAGS = {
    "Completions": "OpenAI's routes with vLLM's extra fields, streaming and not.",
    "Embeddings": "Vectors of texts by the base or an adapter, and texts compared by them.",
    "Models": "The base and each adapter, as clients of OpenAI's API list them.",
    "Adapters": "Upload, look at and delete adapters, and choose what answers by default.",
    "Routes": "Names that stand for a policy: another name, a split, a choice by content, a mixture, a fallback.",
    "Jobs": "What goes on in the background, such as merges.",
    "Tokens": "The base's tokenizer, as vLLM serves it.",
    "vLLM": "vLLM's routes for adapters, so that its tools work.",
    "Operations": "For probes and monitoring. Open without a key.",
}


class Binary:
    """The answer of a route that sends files: JSON as such, others as bytes."""


BINARY = Binary()


@dataclass(frozen=True)
class Operation:
    """The description of a route, beside its path and parameters: a decorator of the function that answers.

    answer: an example of the answer, whose type is the schema; a text is sent as `text_type`, a file as what it is.
    also: other statuses of success, each with an example of its answer.
    body, form: what is taken as JSON, and the schema of what is taken as a form. examples: name to a JSON body.
    struct_body: what is taken as JSON, where msgspec parses it: one of its types, or a union of them.
    errors: statuses beside those that follow from the rest. events: what each event of a stream holds.
    ends_with_done: whether a stream's last event is `[DONE]`. failure: an error, where its envelope is not OpenAI's.
    headers, optional_headers: of a successful answer, name to description.
    """

    summary: str
    answer: msgspec.Struct | str | Binary
    status: int = 200
    also: Mapping[int, msgspec.Struct] = field(default_factory=dict)
    body: type[BaseModel] | None = None
    form: Mapping[str, Any] | None = None
    struct_body: Any = None
    examples: Mapping[str, Json] | None = None
    errors: Sequence[int] = ()
    events: msgspec.Struct | None = None
    ends_with_done: bool = True
    failure: msgspec.Struct | None = None
    headers: Mapping[str, str] | None = None
    text_type: str = TEXT
    optional_headers: Mapping[str, str] | None = None

    def __call__(self, endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, self)
        return endpoint

    @property
    def structs(self) -> Iterator[type[msgspec.Struct]]:
        """The types of what is answered as JSON."""
        yield from (
            type(one)
            for one in (self.answer, self.events, self.failure, *self.also.values())
            if isinstance(one, msgspec.Struct)
        )


def openapi(app: FastAPI, routers: Sequence[APIRouter], keys: bool) -> Json:
    """Return the description of all routes. keys: whether the server asks for one.

    Raises AttributeError for a route that nothing was declared of.
    """
    operations = list(_operations(routers))
    document: Json = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    for path, method, operation in operations:
        guarded = keys and is_guarded(path)
        document["paths"][path][method].update(_describe(operation, guarded))
    # FastAPI's own form of a refused parameter is never sent: see http/errors.py.
    document["components"] = _components([operation for *_, operation in operations], keys)
    return document


def _operations(routers: Sequence[APIRouter]) -> Iterator[tuple[str, str, Operation]]:
    """Path, method and declaration of each route."""
    for router in routers:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            if not route.include_in_schema:  # a second spelling, or what is always refused
                continue
            operation = getattr(route.endpoint, _ATTRIBUTE)
            yield from ((route.path_format, method.lower(), operation) for method in route.methods or ())


def _describe(operation: Operation, guarded: bool) -> Json:
    described: Json = {"summary": operation.summary, "responses": _responses(operation, guarded)}
    if guarded:
        described["security"] = [{KEY: []}]
    if operation.body is not None or operation.struct_body is not None:
        content = {JSON: {"schema": _body_schema(operation)}}
        if operation.examples:
            content[JSON]["examples"] = {name: {"value": value} for name, value in operation.examples.items()}
        if operation.form is not None:
            content[FORM] = {"schema": dict(operation.form)}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _body_schema(operation: Operation) -> Json:
    if operation.body is not None:
        return _reference(operation.body)
    (schema,), _ = msgspec.json.schema_components([operation.struct_body], ref_template=SCHEMAS + "{name}")
    return schema


def _responses(operation: Operation, guarded: bool) -> Json:
    success: Json = {"description": HTTPStatus(operation.status).phrase, "content": _contents(operation)}
    headers = {
        name: {"description": text, "required": required, "schema": {"type": "string"}}
        for named, required in ((operation.headers, True), (operation.optional_headers, False))
        for name, text in (named or {}).items()
    }
    if headers:
        success["headers"] = headers
    has_body = operation.body is not None or operation.struct_body is not None
    statuses = {*operation.errors, *((400, 413) if has_body else ()), *((401,) if guarded else ()), 503}
    errors = {str(status): _error(operation, status) for status in sorted(statuses)}
    others = {
        str(status): {"description": HTTPStatus(status).phrase, "content": {JSON: _content(example)}}
        for status, example in operation.also.items()
    }
    return {str(operation.status): success, **others, **errors}


def _error(operation: Operation, status: int) -> Json:
    if operation.failure is None:
        return {"$ref": f"#/components/responses/{error_name(status)}"}
    return {"description": HTTPStatus(status).phrase, "content": {JSON: _content(operation.failure)}}


def _contents(operation: Operation) -> Json:
    if isinstance(operation.answer, str):
        return {operation.text_type: {"schema": {"type": "string"}, "example": operation.answer}}
    if isinstance(operation.answer, Binary):
        return {
            BYTES: {"schema": {"type": "string", "format": "binary"}, "example": "the bytes of the file"},
            JSON: {"schema": {"type": "object"}, "example": {"peft_type": "LORA", "r": 8}},
        }
    contents = {JSON: _content(operation.answer)}
    if operation.events is not None:
        contents[EVENTS] = _completion(operation.events) if operation.ends_with_done else _stream(operation.events)
    return contents


def _stream(event: msgspec.Struct) -> Json:
    """Return the schema of each event, of which there are more kinds than the one of the example."""
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": {"type": "object", "required": ["type"]}}
    name = event.__struct_config__.tag
    return {
        "schema": {
            "type": "object",
            "description": "An event. `event` is the `type` of its data. The last one says how the answer ended.",
            "required": ["event", "data"],
            "properties": {"event": {"type": "string"}, "data": data},
        },
        "example": f"event: {name}\ndata: {msgspec.json.encode(event).decode()}\n\n",
    }


def _completion(event: msgspec.Struct) -> Json:
    """Return the schema of each event: 3.1 has no other form for streams, and 3.2 calls the same `itemSchema`."""
    schema = {"anyOf": [_reference(type(event)), _reference(ErrorEnvelope)]}
    data = {
        "description": "The last event's is `[DONE]`. What fails on the way is an event with the error's envelope.",
        "anyOf": [
            {"const": "[DONE]"},
            {"type": "string", "contentMediaType": JSON, "contentSchema": schema},
        ],
    }
    return {
        "schema": {"type": "object", "description": "An event.", "required": ["data"], "properties": {"data": data}},
        "example": f"data: {msgspec.json.encode(event).decode()}\n\ndata: [DONE]\n\n",
    }


def _content(example: msgspec.Struct) -> Json:
    return {"schema": _reference(type(example)), "example": msgspec.to_builtins(example)}


def _reference(kind: type) -> Json:
    return {"$ref": SCHEMAS + kind.__name__}


class _WithoutTitles(GenerateJsonSchema):
    """Fields are not named a second time, in title case."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _components(operations: Sequence[Operation], keys: bool) -> Json:
    bodies = list(dict.fromkeys(operation.body for operation in operations if operation.body is not None))
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template=SCHEMAS + "{model}", schema_generator=_WithoutTitles
    )
    structs = {ErrorEnvelope, *(struct for operation in operations for struct in operation.structs)}
    structs |= {operation.struct_body for operation in operations if operation.struct_body is not None}
    _, answers = msgspec.json.schema_components(structs, ref_template=SCHEMAS + "{name}")
    requests = definitions.get("$defs", {})
    assert not requests.keys() & answers.keys(), "two types of one name"
    components = {
        "schemas": dict(sorted({**requests, **answers}.items())),
        "responses": {error_name(status): describe_error(status) for status in ERRORS},
    }
    if keys:
        components["securitySchemes"] = {KEY: {"type": "http", "scheme": "bearer"}}
    return components
