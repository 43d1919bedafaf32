"""Build a message, whole or as a stream: a whole one is what its events add up to."""

import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing

import msgspec

from ..assistant.blocks import Block, Blocks, Change, Grown, Opened
from ..http.errors import ErrorBody
from ..openai.answers import UsageCounter
from ..openai.generation import Generation, Plan
from ..openai.parted import PartedStep, parted
from ..openai.text_deltas import Delta
from .dialect import message_error
from .structs import (
    AssistantMessage,
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    InputPiece,
    MessageBlock,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageText,
    MessageThinking,
    MessageToolUse,
    MessageUsage,
    Ping,
    Stopped,
    StopReason,
    TextPiece,
    ThinkingPiece,
    event_frame,
)

Piece = TextPiece | InputPiece | ThinkingPiece


class MessageBuilder:
    """Build the answer to one request."""

    def __init__(self, plan: Plan) -> None:
        self._blocks = Blocks()
        self._counter = UsageCounter(plan)
        self._message = AssistantMessage(
            id=f"msg_{secrets.token_hex(16)}", model=plan.resolved.model, usage=MessageUsage(0, 0)
        )

    async def whole(self, generation: Generation) -> AssistantMessage:
        async with aclosing(parted(generation)) as steps:
            async for step in steps:
                for _ in self._events(step):
                    pass
        self._message.content = [_whole(block) for block in self._blocks.all]
        return self._message

    async def stream(self, generation: Generation) -> AsyncGenerator[bytes]:
        begun = False
        async with aclosing(parted(generation)) as steps:
            async for step in steps:
                events = [*self._events(step)]
                if not begun and step:  # what fails before the first words is no stream
                    begun = True
                    events = [MessageStart(self._start()), Ping(), *events]
                yield b"".join(map(event_frame, events))

    def failed(self, error: ErrorBody) -> bytes:
        """Return the last event of a stream that fails on its way."""
        return event_frame(message_error(error.type, error.message))

    def _start(self) -> AssistantMessage:
        """Return the message as a stream begins with it, when the first step has told what the cache had."""
        return msgspec.structs.replace(self._message, stop_reason=None, stop_sequence=None, usage=self._usage(0))

    def _events(self, step: PartedStep) -> Iterator[Event]:
        for delta, parts in step:
            self._counter.add(0, delta)
            yield from map(_event, self._blocks.take(parts))
            if delta.finish_reason is not None:
                yield from self._end(delta)

    def _end(self, delta: Delta) -> Iterator[Event]:
        yield from map(_event, self._blocks.close())
        message = self._message
        message.stop_reason = self._stop_reason(delta)
        message.stop_sequence = delta.stop_reason if isinstance(delta.stop_reason, str) else None
        message.usage = self._usage()
        yield MessageDelta(Stopped(message.stop_reason, message.stop_sequence), message.usage)
        yield MessageStop()

    def _stop_reason(self, delta: Delta) -> StopReason:
        if delta.finish_reason == "length":
            return "max_tokens"
        if isinstance(delta.stop_reason, str):
            return "stop_sequence"
        return "tool_use" if any(block.kind == "call" for block in self._blocks.all) else "end_turn"

    def _usage(self, generated: int | None = None) -> MessageUsage:
        usage = self._counter.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return MessageUsage(
            usage.prompt_tokens - cached, usage.completion_tokens if generated is None else generated, cached
        )


def _event(change: Change) -> Event:
    if isinstance(change, Opened):
        return BlockStart(change.index, _EMPTY[change.block.kind](change.block))
    if isinstance(change, Grown):
        return BlockDelta(change.index, _PIECES[change.block.kind](change.text))
    return BlockStop(change.index)


def _whole(block: Block) -> MessageBlock:
    return _WHOLE[block.kind](block)


def _input(arguments: str) -> dict[str, object]:
    """Return a call's input. What is no object, as where a limit cut it short, is kept as a text."""
    try:
        decoded = msgspec.json.decode(arguments or b"{}")
    except msgspec.DecodeError:
        decoded = None
    return decoded if isinstance(decoded, dict) else {"arguments": arguments}


_EMPTY: Mapping[str, Callable[[Block], MessageBlock]] = {
    "text": lambda block: MessageText(""),
    "call": lambda block: MessageToolUse(block.call_id, block.name, {}),
    "reasoning": lambda block: MessageThinking(""),
}
_WHOLE: Mapping[str, Callable[[Block], MessageBlock]] = {
    "text": lambda block: MessageText(block.text),
    "call": lambda block: MessageToolUse(block.call_id, block.name, _input(block.text)),
    "reasoning": lambda block: MessageThinking(block.text),
}
_PIECES: Mapping[str, Callable[[str], Piece]] = {"text": TextPiece, "call": InputPiece, "reasoning": ThinkingPiece}
