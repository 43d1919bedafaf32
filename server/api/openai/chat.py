"""POST /v1/chat/completions, as OpenAI has it, with vLLM's extra fields."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import Request, Response
from msgspec import UNSET, UnsetType

from ..http.bodies import read_json
from ..services import Services
from ..text.tokenizer import Tokenizer
from .answers import UsageCounter, answer, new_id, usage_of
from .chat_request import ChatRequest, Message
from .event_stream import TextFrames, frame
from .generation import Generation, Plan, SequenceDelta
from .logprobs import chat_logprobs, prompt_logprobs
from .planning import check_ids, check_min_tokens, encode_prompts, fit_length, salt_of, weighted_adapters
from .resolution import who_answers
from .responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Usage,
)
from .text_deltas import Delta


async def create_chat_completion(request: Request, services: Services) -> Response:
    body = await read_json(request, ChatRequest)
    tokenizer = services.tokenizer()
    plan = await _plan(services, tokenizer, request, body)
    builder = ChatBuilder(body, tokenizer)
    return await answer(services, request, plan, builder.whole, builder.stream)


async def render(tokenizer: Tokenizer, messages: list[Message], body: Any) -> str:
    """Return the prompt's text. body: any request with the chat template's arguments. Raises ApiError."""
    return await tokenizer.require_chat_template().render(
        [_as_template_sees_it(message) for message in messages],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        arguments=body.chat_template_kwargs or {},
    )


def last_words(messages: Sequence[Message]) -> str:
    """Return the user's last message; where there is none, the last of all."""
    users = [message for message in messages if message.role == "user"]
    return (users or messages)[-1].content or ""


def _as_template_sees_it(message: Message) -> dict[str, Any]:
    """Return a message's fields.

    OpenAI calls the system's role `developer` since its o1; templates know the older name.
    """
    fields = message.model_dump(exclude_none=True)
    return {**fields, "role": "system"} if message.role == "developer" else fields


async def _plan(services: Services, tokenizer: Tokenizer, request: Request, body: ChatRequest) -> Plan:
    info = services.model()
    text = await render(tokenizer, body.messages, body)
    # The template has written the special tokens itself.
    [prompt] = await encode_prompts(info, tokenizer, [text], body.add_special_tokens)
    judged = partial(last_words, body.messages)
    resolved = await who_answers(services, request, body, judged)
    check_ids(info, body, [prompt], resolved)
    sampling = body.sampling(
        max_tokens=fit_length(info, prompt, body.limit, None, resolved.virtual_tokens),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
    check_min_tokens(body, [sampling])
    adapters = weighted_adapters(resolved, body.task_id)
    return Plan(body, resolved, adapters, [prompt], [sampling], body.choices, salt_of(request, body), judged)


class ChatBuilder:
    """Build the answer to one request, whole or as a stream."""

    def __init__(self, body: ChatRequest, tokenizer: Tokenizer) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._text_only = not body.logprobs and not body.return_token_ids
        self._id, self._created = new_id("chatcmpl")

    async def whole(self, generation: Generation) -> ChatCompletion:
        wholes = await generation.collect()
        chat = ChatCompletion(
            id=self._id,
            created=self._created,
            model=generation.resolved.model,
            choices=[self._choice(index, whole) for index, whole in enumerate(wholes)],
            usage=usage_of(generation.plan, wholes),
        )
        if self._body.prompt_logprobs is not None:
            chat.prompt_logprobs = prompt_logprobs(wholes[0].prompt_logprobs or [], self._tokenizer.token_bytes)
        if self._body.return_token_ids:
            chat.prompt_token_ids = generation.plan.prompts[0].token_ids
        return chat

    async def stream(self, generation: Generation) -> AsyncGenerator[bytes]:
        counter = UsageCounter(generation.plan)
        usage = None if self._body.include_usage else UNSET

        def chunk(choice: ChatChunkChoice) -> ChatChunk:
            return self._chunk(generation, [choice], usage)

        text_frames = TextFrames(lambda index, text: chunk(self._chunk_choice(index, Delta(text))))
        roles = (
            ChatChunkChoice(i, ChatDelta(role="assistant", content="")) for i in range(generation.plan.num_sequences)
        )
        opening = b"".join(frame(chunk(role)) for role in roles)  # goes before the first words, and no earlier
        async with aclosing(generation.deltas()) as steps:
            async for deltas in steps:
                if deltas:
                    yield opening + b"".join(self._frames(deltas, counter, text_frames, chunk))
                    opening = b""
        if self._body.include_usage:
            yield frame(self._chunk(generation, [], counter.usage()))

    def _frames(
        self,
        deltas: list[SequenceDelta],
        counter: UsageCounter,
        text_frames: TextFrames,
        chunk: Callable[[ChatChunkChoice], ChatChunk],
    ) -> Iterator[bytes]:
        for index, delta in deltas:
            counter.add(index, delta)
            if self._text_only and delta.finish_reason is None:
                if delta.text:
                    yield text_frames(index, delta.text)
            elif self._has_content(delta):
                yield frame(chunk(self._chunk_choice(index, delta)))

    def _chunk(
        self, generation: Generation, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None
    ) -> ChatChunk:
        model = generation.resolved.model
        return ChatChunk(id=self._id, created=self._created, model=model, choices=choices, usage=usage)

    def _choice(self, index: int, whole: Delta) -> ChatChoice:
        message = ChatMessage(whole.text)
        choice = ChatChoice(index, message, self._logprobs(whole), whole.finish_reason, whole.stop_reason)
        choice.token_ids = whole.token_ids if self._body.return_token_ids else UNSET
        return choice

    def _chunk_choice(self, index: int, delta: Delta) -> ChatChunkChoice:
        message = ChatDelta(content=delta.text) if delta.text else ChatDelta()
        choice = ChatChunkChoice(index, message, self._logprobs(delta), delta.finish_reason, delta.stop_reason)
        choice.token_ids = delta.token_ids if self._body.return_token_ids else UNSET
        return choice

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(delta.shown, self._tokenizer.token_bytes, self._body.top_logprobs or 0)

    def _has_content(self, delta: Delta) -> bool:
        """Return whether a delta is worth a chunk: one whose text is held back for now is not."""
        scored = delta.shown and self._body.logprobs
        return bool(delta.text or scored or delta.finish_reason or self._body.return_token_ids)
