"""Parts of a message to items and events, without a server."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseOutputItem, ResponseStreamEvent
from pydantic import TypeAdapter

from peftserve.server.api.assistant.parts import CallDelta, Parts
from peftserve.server.api.openai.responses import ChatTokenLogprob
from peftserve.server.api.openai.text_deltas import Delta, ShownToken
from peftserve.server.api.responses_api.events import ResponseCreated
from peftserve.server.api.responses_api.output import Output
from peftserve.server.api.responses_api.structs import ResponseObject

EVENT, ITEM = TypeAdapter(ResponseStreamEvent), TypeAdapter(ResponseOutputItem)

REASONING = st.text(min_size=1, max_size=4).map(lambda text: Parts(reasoning=text))
CONTENT = st.text(min_size=1, max_size=4).map(lambda text: Parts(content=text))
ARGUMENTS = st.lists(st.text(max_size=4), max_size=3)
CALLS = st.lists(ARGUMENTS, max_size=3).map(
    lambda calls: [
        piece
        for index, pieces in enumerate(calls)
        for piece in (
            Parts(calls=[CallDelta(index, f"call_{index}", "f")]),
            *(Parts(calls=[CallDelta(index, arguments=text)]) for text in pieces),
        )
    ]
)
MESSAGES = st.tuples(st.lists(REASONING, max_size=3), st.lists(CONTENT, max_size=3), CALLS).map(
    lambda runs: [parts for run in runs for parts in run]
)


def _score(tokens):
    return [ChatTokenLogprob(str(token.token_id), -1.0, [], []) for token in tokens]


def _run(message, summarised=False, status="completed"):
    """Return the output and its events as a client gets them; each part comes with one token of its own."""
    output = Output(summarised, _score)
    deltas = [Delta(token_ids=[number], shown=[ShownToken(number, 0, None)]) for number in range(len(message))]
    events = [event for delta, parts in zip(deltas, message, strict=True) for event in output.take(delta, parts)]
    events += output.end(status)
    return output, [msgspec.json.decode(msgspec.json.encode(event)) for event in events]


@settings(deadline=None)
@given(MESSAGES, st.booleans())
def test_the_official_client_adds_the_events_up_to_the_items(message, summarised):
    output, events = _run(message, summarised)
    state = ResponseStreamState(input_tools=[], text_format=omit)
    created = ResponseCreated(response=ResponseObject(id="resp_1", created_at=0, model="m"))
    for event in [msgspec.json.decode(msgspec.json.encode(created)), *events]:
        state.handle_event(EVENT.validate_python(event, strict=True))
    items = [msgspec.to_builtins(item) for item in output.items]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert items == done
    summed = state._output_items
    for index, item in enumerate(items):
        ITEM.validate_python(item, strict=True)
        assert item["status"] == "completed"
        if item["type"] == "message":
            assert summed[index].content[0].text == item["content"][0]["text"]
        elif item["type"] == "function_call":
            assert summed[index].arguments == item["arguments"]
    deltas = {kind: _said(events, kind) for kind in ("output_text", "reasoning_text", "reasoning_summary_text")}
    assert deltas["output_text"] == "".join(parts.content for parts in message)
    reasoning = "".join(parts.reasoning for parts in message)
    assert deltas["reasoning_summary_text" if summarised else "reasoning_text"] == reasoning
    assert output.reasoning_tokens == sum(bool(parts.reasoning) for parts in message)


def _said(events, kind):
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


def test_logprobs_are_of_the_texts_tokens_those_held_back_and_the_last_ones_too():
    message = [Parts(reasoning="r"), Parts(), Parts(content="ab"), Parts(content="c"), Parts()]
    output, events = _run(message)
    scores = [
        score["token"] for event in events for score in event.get("logprobs", []) if event["type"].endswith("delta")
    ]
    assert scores == ["1", "2", "3", "4"]
    assert [score.token for score in output.items[1].content[0].logprobs] == scores


def test_the_last_item_alone_is_incomplete_where_a_limit_was_reached():
    call = CallDelta(0, "call_0", "f", '{"a')
    output, events = _run([Parts(content="a"), Parts(calls=[call])], status="incomplete")
    assert [item.status for item in output.items] == ["completed", "incomplete"]
    assert output.items[1].arguments == '{"a'
    assert events[-1]["type"] == "response.output_item.done"


def test_a_message_without_words_is_an_empty_one():
    output, _ = _run([Parts()])
    assert [item.content[0].text for item in output.items] == [""]
