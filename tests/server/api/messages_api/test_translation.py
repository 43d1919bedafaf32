import pytest
from pydantic import ValidationError

from peftserve.server.api.messages_api.request import MessagesRequest
from peftserve.server.api.messages_api.translation import _conversation, _form, _tools, translate

USER = {"role": "user", "content": "Weather?"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"at": "Köln"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1"}


def _body(messages=(USER,), **fields):
    return MessagesRequest.model_validate({"max_tokens": 5, "messages": list(messages), **fields})


def test_calls_results_and_thinking_are_those_of_a_chat():
    thinking = {"type": "thinking", "thinking": "hm", "signature": ""}
    said = {"role": "assistant", "content": [thinking, {"type": "text", "text": "Let me look."}, USE]}
    results = {"role": "user", "content": [{**RESULT, "content": [{"type": "text", "text": "fine"}]}]}
    results["content"].append({"type": "text", "text": "And now?"})
    conversation = _conversation(_body([USER, said, results], system="be brief"))
    function = {"name": "weather", "arguments": '{"at":"Köln"}'}
    assert conversation.messages == [
        {"role": "system", "content": "be brief"},
        USER,
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "Let me look.",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "fine"},
        {"role": "user", "content": "And now?"},
    ]
    assert conversation.places[2:] == ["messages.1.content.0", "messages.2.content.0", "messages.2.content.1"]
    assert not conversation.is_open


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_messages_without_a_block_are_no_chat(role):
    with pytest.raises(ValidationError, match="at least 1 item"):
        translate(_body([{"role": role, "content": []}], model="base"))


def test_tools_choices_and_forms():
    schema = {"type": "object"}
    tool = {"name": "f", "description": "d", "input_schema": schema, "cache_control": {"type": "ephemeral"}}
    function = {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}
    named = {"type": "function", "function": {"name": "f"}}
    for choice, chosen in (("auto", "auto"), ("any", "required"), ("none", "none"), ("tool", named)):
        choice = {"type": choice, "disable_parallel_tool_use": True, **({"name": "f"} if choice == "tool" else {})}
        fields = _tools(_body(tools=[tool], tool_choice=choice))
        assert fields == {"tools": [function], "tool_choice": chosen, "parallel_tool_calls": False}
    assert _tools(_body(tools=[tool]))["parallel_tool_calls"] is True
    form = {"type": "json_schema", "schema": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
    assert _form(_body(output_format=form))["response_format"] == wanted
    assert _form(_body(output_config={"format": form, "effort": "low"})) == {
        "response_format": wanted,
        "reasoning_effort": "low",
    }
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "chat_template_kwargs": {"a": 1}}
    assert _form(_body(**thinking)) == {"chat_template_kwargs": {"enable_thinking": True, "a": 1}}
