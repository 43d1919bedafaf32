"""From a request for a message to the chat that has the same answer, and to the names that its errors use."""

from collections.abc import Mapping
from typing import Any

from ..openai.chat_request import ChatRequest
from ..openai.places import told_as, tool_names
from .blocks import Json
from .conversation import Conversation
from .request import CountRequest, MessagesRequest, Tool, ToolChoice

NAMES: Mapping[str, str] = {
    "prompt": "messages",
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "user": "metadata.user_id",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format",
    "reasoning_effort": "output_config.effort",
}
"""Places in a chat's body to those in ours."""

CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}
THINKING: Mapping[str, Json] = {
    "enabled": {"enable_thinking": True},
    "disabled": {"enable_thinking": False},
    "adaptive": {},
}


def translate(body: CountRequest) -> tuple[ChatRequest, Mapping[str, str]]:
    """Return the chat that a request asks for, and its places to those of the client's body.

    Raises ApiError, pydantic's ValidationError.
    """
    conversation = _conversation(body)
    fields = {
        **(body.model_extra or {}),
        "model": body.model,
        "messages": conversation.messages,
        **_ending(conversation),
        **_tools(body),
        **_form(body),
        **(_sampling(body) if isinstance(body, MessagesRequest) else {}),
    }
    names = {
        **NAMES,
        **{f"messages.{number}": place for number, place in enumerate(conversation.places)},
        **tool_names(len(body.tools or ()), "input_schema"),
    }
    with told_as(names):
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None}), names


def _conversation(body: CountRequest) -> Conversation:
    conversation = Conversation()
    if body.system is not None:
        conversation.instruct(body.system)
    for number, message in enumerate(body.messages):
        conversation.add(message, f"messages.{number}")
    return conversation


def _ending(conversation: Conversation) -> Json:
    """Return how the prompt ends: an assistant's message that comes last is gone on with."""
    return {"add_generation_prompt": False, "continue_final_message": True} if conversation.is_open else {}


def _sampling(body: MessagesRequest) -> Json:
    return {
        "max_completion_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stream": body.stream,
        **({} if body.metadata is None else {"user": body.metadata.user_id}),
    }


def _tools(body: CountRequest) -> Json:
    choice = {} if body.tool_choice is None else {"tool_choice": _choice(body.tool_choice)}
    if not body.tools:
        return choice
    several = body.tool_choice is None or not body.tool_choice.disable_parallel_tool_use
    return {**choice, "tools": [_tool(tool) for tool in body.tools], "parallel_tool_calls": several}


def _tool(tool: Tool) -> Json:
    function: Json = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return CHOICES[choice.type]


def _form(body: CountRequest) -> Json:
    form: Json = {}
    output = body.output_format or (body.output_config.format if body.output_config is not None else None)
    if output is not None:
        schema = {"name": "output", "schema": output.schema_, "strict": True}
        form["response_format"] = {"type": "json_schema", "json_schema": schema}
    if body.output_config is not None:
        form["reasoning_effort"] = body.output_config.effort
    if body.thinking is not None:
        given = (body.model_extra or {}).get("chat_template_kwargs")
        form["chat_template_kwargs"] = {**THINKING[body.thinking.type], **(given if isinstance(given, dict) else {})}
    return form
