"""The reference of routes, from documents with all that OpenAPI's schemas can say, and from the server's own."""

from enum import Enum
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field

from docs.api_reference import reference
from docs.openapi import openapi


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    """One part.
    It has a name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "x"}]})

    name: str = Field(min_length=1, max_length=9, description="as a|b")
    weight: float = 1.0


class Thing(BaseModel):
    kind: Literal["thing"] = "thing"
    parts: list[Part] | None = Field(default=None, max_length=3)
    table: dict[str, Part] = {}
    colour: Colour
    size: int | None = Field(default=None, ge=1, lt=10)
    anything: Any = None


def document() -> dict[str, Any]:
    app = FastAPI()
    taken = {"description": "taken", "model": Part, "headers": {"Retry-After": {"description": "in seconds"}}}
    stream = {"content": {"text/event-stream": {"example": "data: [DONE]\n\n"}}}

    @app.post(
        "/things/{name}",
        responses={201: stream, 409: taken},
        status_code=201,
        openapi_extra={"security": [{"key": []}]},
    )
    def put(
        name: str,
        thing: Annotated[Thing, Body(openapi_examples={"one": {"value": {"colour": "red"}}})],
        after: Annotated[str, Query(max_length=5)] = "",
    ) -> Thing:
        """Make a thing.

        Again under its name: the same."""
        return thing

    return app.openapi()


def test_a_route_says_what_goes_in_and_what_comes_out() -> None:
    text = reference(document())
    assert "### `POST /things/{name}`\n\nMake a thing.\n\nAgain under its name: the same." in text
    assert "| `name` | path | string |" in text
    assert "| `after` | query | string, at most 5 characters |" in text
    assert "Body, required: `application/json`: [Thing](#thing)." in text
    assert '```json\n{\n  "colour": "red"\n}\n```' in text
    assert "| 201 | `application/json`: [Thing](#thing); `text/event-stream`: any | Successful Response |" in text
    assert "| 409 | `application/json`: [Part](#part) | taken. `Retry-After`: in seconds |" in text
    assert "Example, 201:\n\n```\ndata: [DONE]\n```" in text
    assert "Needs a key" in text


def test_a_schema_says_types_limits_and_defaults() -> None:
    text = reference(document())
    assert "### Part\n\nOne part.\nIt has a name." in text
    assert "| `name` | string | required | at least 1 characters, at most 9 characters. as a\\|b |" in text
    assert "| `weight` | number | `1.0` |  |" in text
    assert '| `kind` | `"thing"` | `"thing"` |  |' in text
    assert "| `parts` | list of [Part](#part) or null |  | at most 3 items |" in text
    assert "| `table` | object of [Part](#part) | `{}` |  |" in text
    assert "| `colour` | [Colour](#colour) | required |  |" in text
    assert '### Colour\n\n`"red"` or `"blue"`.' in text
    assert "| `size` | integer or null |  | ≥ 1, < 10 |" in text
    assert "| `anything` | any |  |  |" in text
    assert 'Example:\n\n```json\n{\n  "name": "x"\n}\n```' in text


def test_every_route_of_the_server_is_there() -> None:
    found = openapi()
    text = reference(found)
    assert {"/v1/completions", "/v1/chat/completions", "/v1/adapters", "/metrics"} <= found["paths"].keys()
    for path, item in found["paths"].items():
        assert all(f"### `{method.upper()} {path}`" in text for method in item)
