from itertools import product

import msgspec
import pytest
from pydantic import ValidationError

from peftserve.server.api.assistant.parts import CallDelta, Parts
from peftserve.server.api.openai.chat_answer import whole_message
from peftserve.server.api.openai.chat_request import Message

CALLS = [CallDelta(0, "call_1", "now"), CallDelta(0, arguments="{}"), CallDelta(1, "call_2", "now", "{}")]


@pytest.mark.parametrize(("content", "reasoning", "calls"), [*product(["", "Yes."], ["", "Hm."], [[], CALLS])])
@pytest.mark.parametrize(("is_older", "with_reasoning"), [*product([False, True], repeat=2)])
def test_every_answer_can_be_sent_back_as_it_came(content, reasoning, calls, is_older, with_reasoning):
    answer = msgspec.to_builtins(whole_message(Parts(content, reasoning, calls), is_older, with_reasoning))
    taken = Message.model_validate(answer)
    assert taken.content == answer["content"]
    assert taken.model_dump(exclude_none=True).get("reasoning") == answer.get("reasoning")
    made = answer.get("tool_calls", [])
    assert [(call.id, call.function.name) for call in taken.tool_calls or ()] == [
        (call["id"], call["function"]["name"]) for call in made
    ]
    assert (taken.function_call is None) == ("function_call" not in answer)


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool", "function"])
def test_others_have_to_say_something(role):
    with pytest.raises(ValidationError, match="content is missing"):
        Message.model_validate({"role": role, "content": None})
