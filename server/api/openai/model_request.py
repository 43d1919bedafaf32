"""The fields that every request which a model answers has: which model, and how it is queued. Knows no engine.

Unknown fields are ignored, as OpenAI's own clients expect of compatible servers; known ones that would change the
answer and are not served are refused by name (see `requests.py`).
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from peftserve.adapters.routing.bodies import MAX_MEMBERS

from ..http.errors import ApiError, bad_request
from .adapter_fields import Named, find_named

INT64 = 1 << 63
_NAMED = "\0named"  # no field of a client's


def faulty(message: str, param: str) -> ApiError:
    """Return what is raised for a body whose fields do not agree. param: the one to change."""
    return bad_request(f"Invalid request: {message}.", param)


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ModelRequest(Body):
    """A body that names a model. named: the adapter that another server's field names, found before all fields."""

    model: str | None = Field(
        default=None,
        max_length=512,
        description="The base's id, an adapter's name for its newest version, `name@2` for a version, or `default`. "
        "Left out: `default`.",
    )
    named: SkipJsonSchema[Named | None] = Field(default=None, validation_alias=_NAMED)

    @model_validator(mode="before")
    @classmethod
    def _look_at_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        cls._refuse_what_is_not_served(data)
        return {**data, _NAMED: named} if (named := find_named(data)) is not None else data

    @classmethod
    def _refuse_what_is_not_served(cls, data: dict[str, Any]) -> None:
        """Check for fields that are known and not served. Raises ApiError 400."""


class MixtureMember(Body):
    """One adapter of a mixture with its weight."""

    name: str = Field(min_length=1, max_length=256, description="An adapter's name, or `name@version`.")
    weight: float = Field(default=1.0, description="By which the adapter's bypass is multiplied.")


class AnsweredRequest(ModelRequest):
    """The fields of all requests that adapters answer: who does, in what order, and of how much of a prompt."""

    adapters: list[MixtureMember] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MEMBERS,
        description="A mixture: the weighted sum of these adapters' bypasses. `model` is then left out or `default`.",
    )
    task_id: int | None = Field(
        default=None, ge=0, lt=1 << 31, description="The task, for adapters of a method that has several."
    )
    user: str | None = Field(default=None, max_length=1024, description="An id of the end user.")
    cache_salt: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Share cached prefixes only with requests of the same salt.",
    )
    priority: int | None = Field(
        default=None,
        ge=-INT64,
        lt=INT64,
        description="Waiting requests of a lower number are taken first; adapters are served fairly among equals. "
        "Default: 0.",
    )
    request_id: str | None = Field(
        default=None, min_length=1, max_length=256, description="What the answer's `id` ends with. Default: drawn."
    )
    truncate_prompt_tokens: int | None = Field(
        default=None,
        ge=-1,
        lt=1 << 31,
        description="Keep so many tokens of a longer prompt; -1: as many as fit the context beside the answer.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="Which end of a prompt is cut off. Default: `left`, so that its last tokens stay."
    )


def refuse_unsupported(body: Mapping[str, Any], neutral_values: Mapping[str, tuple[Any, ...]]) -> None:
    """Check that no field asks for what is not served. Raises ApiError 400 that names the first one.

    neutral_values: fields that are not served to the values that change nothing.
    """
    for name, neutral in neutral_values.items():
        if name in body and body[name] not in neutral:
            raise faulty(f"{name} is not supported by this server; leave it out", name)
