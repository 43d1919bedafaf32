"""Anthropic's messages as structs, encoded by msgspec: the message, its blocks, and the events of a stream."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..openai.event_stream import encode

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageText(msgspec.Struct, tag="text"):
    """Some text."""

    text: str
    citations: None = None


class MessageToolUse(msgspec.Struct, tag="tool_use"):
    """A call of one of the client's tools."""

    id: str
    name: str
    input: dict[str, Any]


class MessageThinking(msgspec.Struct, tag="thinking"):
    """What a reasoning model thought before it answered."""

    thinking: str
    signature: str = ""


MessageBlock = MessageText | MessageToolUse | MessageThinking


class MessageUsage(msgspec.Struct):
    """A message's tokens. What the prefix cache had is not among the input tokens."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class AssistantMessage(msgspec.Struct, tag="message", kw_only=True):
    """The assistant's message."""

    id: str
    role: Literal["assistant"] = "assistant"
    model: Annotated[str, Meta(description="What answers: the base's id, or `name@version` of an adapter.")]
    content: list[MessageBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(msgspec.Struct):
    """The tokens of a conversation."""

    input_tokens: int


class TextPiece(msgspec.Struct, tag="text_delta"):
    """The next piece of a text."""

    text: str


class InputPiece(msgspec.Struct, tag="input_json_delta"):
    """The next piece of a call's input, as JSON."""

    partial_json: str


class ThinkingPiece(msgspec.Struct, tag="thinking_delta"):
    """The next piece of the thinking."""

    thinking: str


class MessageStart(msgspec.Struct, tag="message_start"):
    """A stream's first event."""

    message: AssistantMessage


class Ping(msgspec.Struct, tag="ping"):
    """Says that the stream lives."""


class BlockStart(msgspec.Struct, tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: MessageBlock


class BlockDelta(msgspec.Struct, tag="content_block_delta"):
    """A block goes on."""

    index: int
    delta: TextPiece | InputPiece | ThinkingPiece


class BlockStop(msgspec.Struct, tag="content_block_stop"):
    """A block is whole."""

    index: int


class Stopped(msgspec.Struct):
    """Why a message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag="message_delta"):
    """The message is whole."""

    delta: Stopped
    usage: MessageUsage


class MessageStop(msgspec.Struct, tag="message_stop"):
    """A stream's last event."""


class MessageErrorBody(msgspec.Struct):
    """What was wrong, where, and what would be right."""

    type: str
    message: str


class MessageError(msgspec.Struct, tag="error"):
    """Anthropic's envelope of errors, also a stream's last event where it fails on its way."""

    error: MessageErrorBody


Event = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | MessageError


def event_frame(event: Event) -> bytes:
    """Return an event as it is sent, with its type as its name."""
    return b"event: %b\ndata: %b\n\n" % (str(event.__struct_config__.tag).encode(), encode(event))
