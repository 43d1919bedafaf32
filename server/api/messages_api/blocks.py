"""The content blocks of messages, as a body has them, and their texts."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from ..http.errors import bad_request
from ..openai.model_request import Body

Json = dict[str, Any]

MAX_BLOCKS = 4096


def _text_or_blocks(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(block, dict) for block in value):
        raise ValueError("must be a text or a list of content blocks, which are objects")
    if len(value) > MAX_BLOCKS:
        raise ValueError(f"at most {MAX_BLOCKS} content blocks")
    return value


class TextBlock(Body):
    """Some text."""

    type: Literal["text"]
    text: str


class ToolUseBlock(Body):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=64)
    input: Json


class ThinkingBlock(Body):
    """What the assistant thought."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Body):
    """What another server's assistant thought, encrypted; nobody can read it here."""

    type: Literal["redacted_thinking"]


TextContent = Annotated[str | list[Json], PlainValidator(_text_or_blocks, json_schema_input_type=str | list[TextBlock])]


class ToolResultBlock(Body):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=256)
    content: TextContent = ""


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
Content = Annotated[str | list[Json], PlainValidator(_text_or_blocks, json_schema_input_type=str | list[Block])]


def texts_of(content: str | list[Json], place: str) -> str:
    """Return the text of content that can be nothing else. Raises ApiError that names the block that is none."""
    if isinstance(content, str):
        return content
    texts = []
    for index, block in enumerate(content):
        if block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise not_served(block, f"{place}.{index}", "text")
        texts.append(block["text"])
    return "\n".join(texts)


def not_served(block: Json, place: str, *served: str) -> Exception:
    """Return the error of a block that is of another kind than these, or malformed."""
    kind = block.get("type")
    if kind in served:
        return bad_request(f"{place} is not a well-formed block of type {kind!r}.", place)
    message = f"{place}: content blocks of type {str(kind)[:64]!r} are not served here, only {', '.join(served)}."
    return bad_request(message, f"{place}.type")
