import pytest

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.responses_api.request import ResponsesRequest
from peftserve.server.api.responses_api.translation import translate


def _translated(**fields):
    return translate(ResponsesRequest.model_validate({"input": "hi", **fields}))


USER = {"role": "user", "content": "Weather?"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
SUMMARY = {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "so"}]}


def _call(number, name="weather"):
    fields = {"id": f"fc_{number}", "call_id": f"call_{number}", "status": "completed"}
    return {"type": "function_call", "name": name, "arguments": '{"at": 1}', **fields}


def _output(number, output="fine"):
    return {"type": "function_call_output", "call_id": f"call_{number}", "output": output}


def _chat_call(number, name="weather"):
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": '{"at": 1}'}}


def test_what_the_assistant_did_in_one_go_is_one_message():
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me look."}]}
    items = [USER, REASONING, said, _call(1), _call(2), _output(1), _output(2, [{"type": "input_text", "text": "bad"}])]
    assert _translated(input=[*items, SUMMARY, {"role": "assistant", "content": "Mixed."}, USER]).messages == [
        USER,
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "Let me look.",
            "tool_calls": [_chat_call(1), _chat_call(2)],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "fine"},
        {"role": "tool", "tool_call_id": "call_2", "content": "bad"},
        {"role": "assistant", "reasoning_content": "so", "content": "Mixed."},
        USER,
    ]


def test_turns_that_follow_each_other_stay_apart():
    items = [USER, _call(1), REASONING, _call(2), _output(1), _output(2), REASONING]
    messages = _translated(input=items).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "assistant", "tool", "tool", "assistant"]
    assert messages[1] == {"role": "assistant", "content": None, "tool_calls": [_chat_call(1)]}
    assert messages[-1] == {"role": "assistant", "content": "", "reasoning_content": "hm"}


def test_encrypted_reasoning_of_other_servers_says_nothing():
    encrypted = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    assert _translated(input=[USER, encrypted, _call(1)]).messages[1:] == [
        {"role": "assistant", "content": None, "tool_calls": [_chat_call(1)]}
    ]


def test_turns_are_left_out_from_the_oldest_with_all_that_belongs_to_them():
    items = [USER, _call(1), _output(1), {"role": "assistant", "content": "Fine."}, USER, USER]
    translated = _translated(instructions="be brief", input=items)
    assert [len(messages) for messages in translated.later()] == [7, 3, 2]
    assert all(messages[0]["role"] == "system" for messages in translated.later())
    assert _translated(input=[{"role": "assistant", "content": "x"}]).later() == [
        [{"role": "assistant", "content": "x"}]
    ]


def test_tools_and_forms_are_nested_as_in_chats():
    schema = {"type": "object", "properties": {}}
    tools = [{"type": "function", "name": "f", "parameters": schema, "strict": True}, {"type": "function", "name": "g"}]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    body = _translated(tools=tools, tool_choice=allowed, parallel_tool_calls=False, text={"format": form}).body
    assert body["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}},
        {"type": "function", "function": {"name": "g"}},
    ]
    assert body["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]},
    }
    assert body["parallel_tool_calls"] is False
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }
    named = _translated(tools=tools, tool_choice={"type": "function", "name": "f"}).body["tool_choice"]
    assert named == {"type": "function", "function": {"name": "f"}}
    assert _translated(text={"format": {"type": "json_object"}}).body["response_format"] == {"type": "json_object"}
    assert _translated(reasoning={"effort": "low"}).body["reasoning_effort"] == "low"


def test_errors_of_the_chat_name_our_places():
    translated = _translated(input=[USER, _call(1), _output(1)], instructions="x")
    assert translated.names["messages.0"] == "instructions"
    assert translated.names["messages.2"] == "input.1"
    assert translated.names["messages.3"] == "input.2"
    with pytest.raises(ApiError) as caught:
        _translated(tool_choice={"type": "function", "name": 5})
    assert caught.value.body.param == "tool_choice"
