"""The description of errors in /openapi.json: what each status means, its codes, its headers, and an example.

The codes are chosen where errors are raised and in http/errors.py; this is their list for readers.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..http.errors import RETRY_SECONDS, ErrorBody, ErrorEnvelope, error_type

ERRORS: Mapping[int, tuple[str, ErrorBody]] = {
    status: (meaning, ErrorBody(message, error_type(status), param, code))
    for status, meaning, message, param, code in (
        (
            400,
            "What the client can mend: a body that is not as it should be (no code), a prompt that is too long "
            "(`context_length_exceeded`), an adapter that is malformed or of a kind that is not served "
            "(`invalid_adapter`, `unsupported_adapter`) or cannot be had from its source (`source_failed`), a request "
            "that the engine refuses (`sequence_failed`).",
            "Invalid request: temperature: Input should be less than or equal to 100.",
            "temperature",
            None,
        ),
        (
            401,
            "No valid key (`invalid_api_key`).",
            "A valid API key is required; send it as 'Authorization: Bearer KEY'.",
            None,
            "invalid_api_key",
        ),
        (
            403,
            "More than this key may keep on the server (`quota_exceeded`), or no adapter and so not to be "
            "deleted as a model (`not_deletable`); a web page of another origin, or a name that is not this machine's "
            "(`origin_not_allowed`, `host_not_allowed`).",
            "with this upload there would be 11 adapters of this key, and 10 are allowed; delete some first",
            None,
            "quota_exceeded",
        ),
        (
            404,
            "Nothing has this name or id (`model_not_found`, `adapter_not_found`, `file_not_found`, `job_not_found`, "
            "`response_not_found`).",
            "there is no model or adapter 'nobody'",
            "model",
            "model_not_found",
        ),
        (
            409,
            "The name is taken or reserved, or two changes collide (`adapter_conflict`).",
            "the name 'default' is reserved; choose another",
            "name",
            "adapter_conflict",
        ),
        (
            413,
            "Over a limit of the server (`body_too_large`, `adapter_too_large`).",
            "The request's body is over the limit of 16777216 bytes.",
            None,
            "body_too_large",
        ),
        (
            429,
            "The queue is full (`queue_full`), too many watch (`too_many_watchers`), or too many unknown adapters are "
            "looked for (`too_many_searches`).",
            "The server's queue is full (512 of 512 sequences); try again later.",
            None,
            "queue_full",
        ),
        (
            503,
            "The server cannot answer now: `loading`, `shutting_down`, `engine_dead`, `engine_silent`, "
            "`adapter_damaged`, `store_full`, `store_failed`, `no_room`, `unavailable`, or too many "
            "bodies or connections at once.",
            "The model is being loaded; try again soon.",
            None,
            "loading",
        ),
    )
}
"""Status to what it means, with the codes, and an example."""


def error_name(status: int) -> str:
    """Return the name of a status among the components of the description."""
    return f"Error{status}"


def describe_error(status: int) -> dict[str, Any]:
    """Return the response object of a status, with an example."""
    meaning, body = ERRORS[status]
    content = {
        "schema": {"$ref": "#/components/schemas/ErrorEnvelope"},
        "example": msgspec.to_builtins(ErrorEnvelope(body)),
    }
    response: dict[str, Any] = {"description": meaning, "content": {"application/json": content}}
    if status in (429, 503):
        retry = {"type": "string", "pattern": "^[0-9]+$", "examples": [str(RETRY_SECONDS)]}
        response["headers"] = {"Retry-After": {"description": "Seconds to wait.", "required": True, "schema": retry}}
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}}
    return response
