"""A chat's answer in OpenAI's form, whole or as a stream, from the parts of its messages."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from msgspec import UNSET, UnsetType

from ..assistant.parts import CallDelta, Parts
from ..text.tokenizer import Tokenizer
from .answers import UsageCounter, new_id, usage_of
from .chat_parts import ChatParts
from .chat_request import ChatRequest
from .event_stream import TextFrames, frame
from .generation import Generation, SequenceDelta
from .logprobs import chat_logprobs, prompt_logprobs, spelling
from .responses import (
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatEnded,
    ChatLogprobs,
    ChatMessage,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from .text_deltas import Delta

Chunk = Callable[[ChatChunkChoice], ChatChunk]


class ChatBuilder:
    """Build the answer to one request, whole or as a stream."""

    def __init__(self, body: ChatRequest, tokenizer: Tokenizer) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._id, self._created = new_id("chatcmpl", body.request_id)

    async def whole(self, generation: Generation) -> ChatCompletion:
        wholes = await generation.collect()
        parts = ChatParts(generation.plan)
        chat = ChatCompletion(
            id=self._id,
            created=self._created,
            model=generation.resolved.model,
            choices=[self._choice(index, whole, parts) for index, whole in enumerate(wholes)],
            usage=usage_of(generation.plan, wholes),
        )
        if self._body.prompt_logprobs is not None:
            chat.prompt_logprobs = prompt_logprobs(wholes[0].prompt_logprobs or [], self._tokenizer.token_bytes)
        if self._body.return_token_ids:
            chat.prompt_token_ids = generation.plan.prompts[0].token_ids
        return chat

    async def stream(self, generation: Generation) -> AsyncGenerator[bytes]:
        counter = UsageCounter(generation.plan)
        continuous = self._body.continuous_usage

        def chunk(choice: ChatChunkChoice) -> ChatChunk:
            usage = (counter.usage() if continuous else None) if self._body.include_usage else UNSET
            return self._chunk(generation, [choice], usage)

        frames = _Frames(self._body, chunk, self._chunk_choice, ChatParts(generation.plan))
        roles = (
            ChatChunkChoice(i, ChatDelta(role="assistant", content="")) for i in range(generation.plan.num_sequences)
        )
        opening_chunks = [chunk(role) for role in roles]
        if self._body.return_token_ids:
            opening_chunks[0].prompt_token_ids = generation.plan.prompts[0].token_ids
        opening = b"".join(map(frame, opening_chunks))  # goes before the first words, and no earlier
        async with aclosing(generation.deltas()) as steps:
            async for deltas in steps:
                if deltas:
                    yield opening + b"".join(frames.of(deltas, counter))
                    opening = b""
        if self._body.include_usage:
            yield frame(self._chunk(generation, [], counter.usage()))

    def _chunk(
        self, generation: Generation, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None
    ) -> ChatChunk:
        model = generation.resolved.model
        return ChatChunk(id=self._id, created=self._created, model=model, choices=choices, usage=usage)

    def _choice(self, index: int, whole: Delta, parts: ChatParts) -> ChatChoice:
        message = whole_message(parts.take(index, whole), self._body.is_older, self._body.include_reasoning)
        reason = _older_reason(parts.finish_reason(index, whole), self._body.is_older)
        choice = ChatChoice(index, message, self._logprobs(whole), reason, whole.stop_reason)
        choice.token_ids = whole.token_ids if self._body.return_token_ids else UNSET
        return choice

    def _chunk_choice(self, index: int, message: ChatDelta, delta: Delta, reason: ChatEnded) -> ChatChunkChoice:
        choice = ChatChunkChoice(index, message, self._logprobs(delta), reason, delta.stop_reason)
        choice.token_ids = delta.token_ids if self._body.return_token_ids else UNSET
        return choice

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        spelled = spelling(self._tokenizer.token_bytes, self._body.return_tokens_as_token_ids)
        return chat_logprobs(delta.shown, spelled, self._body.top_logprobs or 0)


class _Frames:
    """The events of one stream."""

    def __init__(
        self,
        body: ChatRequest,
        chunk: Chunk,
        choice: Callable[[int, ChatDelta, Delta, ChatEnded], ChatChunkChoice],
        parts: ChatParts,
    ) -> None:
        self._body = body
        self._text_only = not body.logprobs and not body.return_token_ids and not body.continuous_usage
        self._chunk = chunk
        self._choice = choice
        self._parts = parts
        self._texts = TextFrames(lambda i, text: chunk(choice(i, ChatDelta(content=text), Delta(), None)))

    def of(self, deltas: list[SequenceDelta], counter: UsageCounter) -> Iterator[bytes]:
        """Yield the events of one step. A delta whose text is held back for now is none."""
        for index, delta in deltas:
            counter.add(index, delta)
            parts = self._parts.take(index, delta)
            if self._text_only and delta.finish_reason is None and not parts.calls and not parts.reasoning:
                if parts.content:
                    yield self._texts(index, parts.content)
                continue
            message = delta_message(parts, self._body.is_older, self._body.include_reasoning)
            if message != _NOTHING or self._is_worth_an_event(delta):
                reason = _older_reason(self._parts.finish_reason(index, delta), self._body.is_older)
                yield frame(self._chunk(self._choice(index, message, delta, reason)))

    def _is_worth_an_event(self, delta: Delta) -> bool:
        scored = delta.shown and self._body.logprobs
        return bool(scored or delta.finish_reason or self._body.return_token_ids)


_NOTHING = ChatDelta()


def whole_message(parts: Parts, is_older: bool = False, with_reasoning: bool = True) -> ChatMessage:
    """Return a whole message's parts in OpenAI's form. is_older: with `function_call`, which is one call."""
    message = ChatMessage(parts.content if parts.content or not (parts.calls or parts.reasoning) else None)
    calls = _whole_calls(parts.calls)
    if calls and is_older:
        message.function_call = calls[0].function
    elif calls:
        message.tool_calls = calls
    if parts.reasoning and with_reasoning:
        message.reasoning = message.reasoning_content = parts.reasoning
    return message


def _whole_calls(deltas: list[CallDelta]) -> list[ToolCall]:
    """Join the pieces of each call."""
    calls: list[ToolCall] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(ToolCall(delta.id or "", CalledFunction(delta.name or "", "")))
        function = calls[delta.index].function
        function.arguments = f"{function.arguments or ''}{delta.arguments}"
    return calls


def delta_message(parts: Parts, is_older: bool = False, with_reasoning: bool = True) -> ChatDelta:
    """Return what is new of a message in OpenAI's form."""
    message = ChatDelta()
    if parts.content:
        message.content = parts.content
    if parts.reasoning and with_reasoning:
        message.reasoning = message.reasoning_content = parts.reasoning
    if parts.calls and is_older:
        message.function_call = _function(parts.calls[0])
    elif parts.calls:
        message.tool_calls = [_call_delta(delta) for delta in parts.calls]
    return message


def _function(delta: CallDelta) -> CalledFunction:
    return CalledFunction(delta.name if delta.name is not None else UNSET, delta.arguments)


def _call_delta(delta: CallDelta) -> ToolCallDelta:
    call = ToolCallDelta(delta.index, _function(delta))
    if delta.id is not None:
        call.id, call.type = delta.id, "function"
    return call


def _older_reason(reason: ChatEnded, is_older: bool) -> ChatEnded:
    return "function_call" if is_older and reason == "tool_calls" else reason
