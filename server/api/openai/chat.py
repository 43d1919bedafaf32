"""POST /v1/chat/completions, as OpenAI has it, with vLLM's extra fields."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import Request, Response

from ...wire.messages import ModelInfo
from ..http.bodies import read_json
from ..services import Services
from ..text.tokenizer import Tokenizer
from .answers import answer
from .chat_answer import ChatBuilder
from .chat_messages import Tools, as_template_sees
from .chat_messages import last_words as last_words
from .chat_reading import reading_of
from .chat_request import ChatRequest, Message
from .generation import Plan
from .planning import check_ids, check_min_tokens, cut_of, encode_prompts, fit_length, salt_of, weighted_adapters
from .resolution import who_answers
from .structured import grammar_of
from .tool_grammars import constrained
from .tools import Calling


async def create_chat_completion(request: Request, services: Services) -> Response:
    body = await read_json(request, ChatRequest)
    plan = await plan_chat(services, request, body)
    builder = ChatBuilder(body, plan.tokenizer)
    return await answer(services, request, plan, builder.whole, builder.stream)


async def render(
    tokenizer: Tokenizer, messages: Sequence[Message], body: Any, tools: Tools | None = None, **arguments: Any
) -> str:
    """Return the prompt's text.

    body: any request with the chat template's arguments. tools: definitions, as OpenAI has them. arguments: the
    template's, beside the client's own. Raises ApiError.
    """
    template = tokenizer.require_chat_template()
    chat, tools = as_template_sees(template, messages, tools)
    return await template.render(
        chat,
        tools=tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        arguments={**arguments, **(body.chat_template_kwargs or {})},
    )


async def plan_chat(services: Services, request: Request, body: ChatRequest) -> Plan:
    """Plan the answer to a chat. No await may come between the return and `answer`. Raises AdapterError, ApiError."""
    info = services.model()
    form = await grammar_of(body)
    judged = partial(last_words, body.messages)
    calling = body.calling
    resolved = await who_answers(services, request, body, judged)
    with services.adapters.leases.held(resolved):  # until `answer` holds them: no await comes in between
        tokenizer, ends = await services.speech_of(resolved)
        text = await _write(tokenizer, body, calling)
        cut = cut_of(info, body, resolved.virtual_tokens + (body.limit or 1))
        # The template has written the special tokens itself.
        [prompt] = await encode_prompts(info, tokenizer, [text], body.add_special_tokens, cut)
        reading = reading_of(services.config, tokenizer, body, calling, text)
        grammar = await constrained(tokenizer, body, calling, reading, form)
    check_ids(info, body, [prompt], resolved)
    sampling = body.sampling(
        max_tokens=fit_length(info, prompt, body.limit, _most_by_default(info), resolved.virtual_tokens),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        defaults=info.sampling_defaults,
        grammar=grammar,
    )
    check_min_tokens(body, [sampling])
    adapters = weighted_adapters(resolved, body.task_id)
    salt = salt_of(request, body)
    choices = body.choices
    return Plan(body, resolved, adapters, [prompt], [sampling], choices, tokenizer, salt, judged, ends, reading)


async def count_chat(services: Services, request: Request, body: ChatRequest) -> int:
    """Return how many tokens a chat's prompt has, which may be more than fit, or what a cut that it asks for leaves.

    Raises AdapterError, ApiError.
    """
    resolved = await who_answers(services, request, body, partial(last_words, body.messages))
    with services.adapters.leases.held(resolved):
        tokenizer, _ = await services.speech_of(resolved)
        cut = cut_of(services.model(), body, resolved.virtual_tokens + (body.limit or 1))
        number = len(await tokenizer.encode(await _write(tokenizer, body, body.calling), body.add_special_tokens))
        return number if cut.most is None else min(number, cut.most)


async def _write(tokenizer: Tokenizer, body: ChatRequest, calling: Calling) -> str:
    """Return the prompt's text of a chat, with its tools. Raises ApiError."""
    arguments = body.template_arguments(tokenizer.require_chat_template().mentions)
    return await render(tokenizer, body.messages, body, calling.definitions, **arguments)


def _most_by_default(info: ModelInfo) -> int | None:
    """Return the model's own limit of an answer whose request has none; None for what fits."""
    most = info.sampling_defaults.get("max_tokens")
    return None if most is None else int(most)
