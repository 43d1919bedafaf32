"""Build a response, whole or as a stream: a whole one is what its events add up to."""

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from ..http.errors import ErrorBody
from ..openai.answers import UsageCounter, new_id
from ..openai.generation import Generation, Plan
from ..openai.logprobs import chat_logprobs
from ..openai.parted import PartedStep, parted
from ..openai.text_deltas import ShownToken
from .events import (
    Event,
    OfResponse,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    event_frame,
)
from .output import Output
from .request import ResponsesRequest
from .structs import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ReasoningAsked,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    Scores,
    TextAsked,
)

_ERROR_CODES = {"rate_limit_error": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}


class ResponseBuilder:
    """Build the answer to one request."""

    def __init__(self, body: ResponsesRequest, plan: Plan) -> None:
        self._body = body
        self._plan = plan
        self._response = _begun(body, plan)
        self._output = Output(body.summarised, self._score)
        self._counter = UsageCounter(plan)
        self._sent = 0  # events

    async def whole(self, generation: Generation) -> ResponseObject:
        async with aclosing(parted(generation)) as steps:
            async for step in steps:
                for _ in self._events(step):
                    pass
        return self._response

    async def stream(self, generation: Generation) -> AsyncGenerator[bytes]:
        opening = self._frames([ResponseCreated(response=self._response), ResponseInProgress(response=self._response)])
        async with aclosing(parted(generation)) as steps:
            async for step in steps:
                if step:  # what fails before the first words is no stream
                    yield opening + self._frames(self._events(step))
                    opening = b""

    def failed(self, error: ErrorBody) -> bytes:
        """Return the last event of a stream that fails on its way."""
        code: Any = _ERROR_CODES.get(error.type, "server_error")
        self._response.status = "failed"
        self._response.error = ResponseError(code, error.message)
        self._response.output = self._output.items
        return self._frames([ResponseFailed(response=self._response)])

    def _events(self, step: PartedStep) -> Iterator[Event]:
        for delta, parts in step:
            self._counter.add(0, delta)
            yield from self._output.take(delta, parts)
            if delta.finish_reason is not None:
                yield from self._end(cut=delta.finish_reason == "length")

    def _end(self, cut: bool) -> Iterator[Event]:
        yield from self._output.end("incomplete" if cut else "completed")
        response = self._response
        response.output = self._output.items
        response.usage = self._usage()
        response.completed_at = int(time.time())
        response.status = "incomplete" if cut else "completed"
        response.incomplete_details = IncompleteDetails() if cut else None
        last: type[OfResponse] = ResponseIncomplete if cut else ResponseCompleted
        yield last(response=response)

    def _frames(self, events: Iterator[Event] | Sequence[Event]) -> bytes:
        return b"".join(map(self._frame, events))

    def _frame(self, event: Event) -> bytes:
        event.sequence_number = self._sent
        self._sent += 1
        return event_frame(event)

    def _score(self, tokens: Sequence[ShownToken]) -> Scores:
        if not self._body.wants_logprobs:
            return []
        return chat_logprobs(tokens, self._plan.tokenizer.token_bytes, self._body.top_logprobs or 0).content

    def _usage(self) -> ResponseUsage:
        usage = self._counter.usage()
        return ResponseUsage(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(self._output.reasoning_tokens),
            usage.total_tokens,
        )


def _begun(body: ResponsesRequest, plan: Plan) -> ResponseObject:
    """Return a response that has begun: what was asked for, and what answers."""
    identity, created = new_id("resp")
    [sampling] = plan.sampling
    return ResponseObject(
        id=identity.replace("-", "_"),
        created_at=created,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        model=plan.resolved.model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=_reasoning(body),
        safety_identifier=body.safety_identifier,
        temperature=sampling.temperature,
        text=_text(body),
        tool_choice=body.tool_choice or "auto",
        tools=[tool.model_dump() for tool in body.tools],
        top_logprobs=body.top_logprobs or 0,
        top_p=sampling.top_p,
        truncation=body.truncation or "disabled",
        user=body.user,
        metadata=body.metadata or {},
    )


def _reasoning(body: ResponsesRequest) -> ReasoningAsked:
    asked = body.reasoning
    return ReasoningAsked() if asked is None else ReasoningAsked(asked.effort, asked.summary or asked.generate_summary)


def _text(body: ResponsesRequest) -> TextAsked:
    form = body.text.format if body.text is not None else None
    return TextAsked() if form is None else TextAsked(form.model_dump(by_alias=True, exclude_none=True))
