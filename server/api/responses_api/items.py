"""The items of a conversation, as a body has them, and their texts."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from ..http.errors import bad_request
from ..openai.model_request import Body

Json = dict[str, Any]

MAX_PARTS = 4096
TEXTS: Mapping[str, str] = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "summary_text": "text",
    "reasoning_text": "text",
}
"""Type of a part to the field that has its text."""


def _text_or_parts(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, dict) for part in value)):
        return value
    raise ValueError("must be a text or a list of parts, which are objects")


Content = Annotated[str | list[Json], PlainValidator(_text_or_parts, json_schema_input_type=str | list[Json])]


class MessageItem(Body):
    """A message. Its content is a text, or parts of type `input_text`, `output_text` or `refusal`."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(Body):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=64)
    arguments: str = Field(description="JSON.")


class FunctionOutputItem(Body):
    """What a call gave: a text, or parts of type `input_text`."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=256)
    output: Content


class ReasoningItem(Body):
    """What the assistant thought, as an earlier answer gave it."""

    type: Literal["reasoning"]
    summary: list[Json] = Field(default_factory=list)
    content: list[Json] | None = None


InputItem = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem


def text_of(content: str | Sequence[Json], place: str) -> str:
    """Return the text of a content. Raises ApiError that names the part that is no text."""
    if isinstance(content, str):
        return content
    if len(content) > MAX_PARTS:
        raise bad_request(f"{place} has more than {MAX_PARTS} parts.", place)
    return "\n".join(_text_of_part(part, f"{place}.{index}") for index, part in enumerate(content))


def _text_of_part(part: Json, place: str) -> str:
    kind = part.get("type")
    field = TEXTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise bad_request(f"{place}: parts of type {str(kind)[:64]!r} are not served, only texts.", f"{place}.type")
    if not isinstance(part.get(field), str):
        raise bad_request(f"{place}.{field} must be a text.", f"{place}.{field}")
    return str(part[field])
