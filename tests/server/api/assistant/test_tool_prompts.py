"""Chats with tools through short templates in the style of each family."""

import json
from pathlib import Path

import jinja2
import pytest

from peftserve.server.api.assistant.families import find_family
from peftserve.server.api.assistant.tool_prompts import adapt, needs_traits
from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.text.chat_template import ChatTemplate
from peftserve.server.api.text.long_texts import LongTexts

TEMPLATES = {path.stem: path.read_text() for path in Path(__file__).with_name("templates").glob("*.jinja")}
# What a template writes by itself: system, tools, calls, several, results, arguments as text, short ids.
TRAITS = {
    "chatml": (True, False, False, False, False, False, False),
    "qwen": (True, True, True, True, True, False, False),
    "llama": (True, True, True, False, True, False, False),
    "mistral": (True, True, True, True, True, False, True),
    "gemma": (False, False, False, False, False, False, False),
    "phi": (True, False, False, False, False, False, False),
    "deepseek": (True, False, True, True, True, True, False),
    "pythonic": (True, True, True, True, True, False, False),
    "harmony": (True, True, True, False, True, False, False),
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Now",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def call(call_id, city):
    arguments = json.dumps({"city": city})
    return {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


CHAT = [
    {"role": "user", "content": "Weather in Paris and Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [call("call_1", "Paris"), call("call_2", "Rome")]},
    {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"},
    {"role": "tool", "tool_call_id": "call_2", "content": "31 degrees"},
    {"role": "assistant", "content": "Rome is warmer."},
    {"role": "user", "content": "And Oslo?"},
]


def template(name):
    return ChatTemplate(TEMPLATES[name], {}, LongTexts())


async def prompt(name, chat=CHAT, tools=TOOLS):
    made = template(name)
    chat, tools = adapt(chat, tools, made.traits()) if needs_traits(chat, tools) else (chat, None)
    return await made.render(chat, tools=tools, add_generation_prompt=True, continue_final_message=False, arguments={})


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_templates_know_is_found_out(name):
    made = template(name).traits()
    found = (made.system, made.tools, made.calls, made.several, made.results, made.written_arguments, made.short_ids)
    assert found == TRAITS[name]


@pytest.mark.parametrize("name", TEMPLATES)
async def test_nothing_of_a_chat_with_tools_is_dropped(name):
    text = await prompt(name)
    for said in ("get_weather", "city", "Paris", "Rome", "22 degrees", "31 degrees", "Rome is warmer.", "And Oslo?"):
        assert said in text, said
    order = [text.index(said) for said in ("22 degrees", "31 degrees", "Rome is warmer.", "And Oslo?")]
    assert order == sorted(order)
    assert text.count("get_weather") >= 3
    assert ("You may call" in text) == (not template(name).traits().tools)


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_chat_without_tools_is_as_the_template_has_it(name):
    chat = [CHAT[0], CHAT[4], CHAT[5]]
    source = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    assert await prompt(name, chat, None) == source.from_string(TEMPLATES[name]).render(messages=chat, tools=None)


async def test_calls_in_words():
    text = await prompt("gemma")
    written = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert written in text
    first, second = (f"<tool_response>\n{degrees} degrees\n</tool_response>" for degrees in (22, 31))
    answered = f"<start_of_turn>user\n{first}\n{second}<end_of_turn>"
    assert answered in text
    assert text.startswith("<start_of_turn>user\nYou may call")
    assert "Weather in Paris and Rome?<end_of_turn>" in text
    with_system = await prompt("chatml", [{"role": "system", "content": "Be brief."}, *CHAT])
    assert with_system.startswith("<|im_start|>system\nBe brief.\n\nYou may call")
    last = await prompt("gemma", [*CHAT[:4], {"role": "user", "content": "So?"}])
    assert "</tool_response>\nSo?<end_of_turn>" in last


async def test_one_call_a_message_where_the_template_takes_no_more():
    text = await prompt("llama")
    assert text.index('"Paris"') < text.index("22 degrees") < text.index('"city": "Rome"') < text.index("31 degrees")


async def test_ids_as_mistral_has_them_and_names_of_results():
    text = await prompt("mistral")
    ids = [piece.split('"')[0] for piece in text.split('"id": "')[1:]]
    assert all(len(call_id) == 9 for call_id in ids)
    assert [f"degrees {call_id}[/TOOL_RESULTS]" in text for call_id in ids] == [True, True]
    kept = [{**CHAT[1], "tool_calls": [call("abcdefgh1", "Paris")]}, {**CHAT[2], "tool_call_id": "abcdefgh1"}]
    assert "22 degrees abcdefgh1" in await prompt("mistral", [CHAT[0], *kept])
    chat, _ = adapt(CHAT, None, template("qwen").traits())
    assert [message["name"] for message in chat if message["role"] == "tool"] == ["get_weather", "get_weather"]


async def test_arguments_that_are_no_json_are_kept():
    odd = [
        CHAT[0],
        {**CHAT[1], "tool_calls": [{**call("call_1", ""), "function": {"name": "f", "arguments": "{oops"}}]},
    ]
    assert "{oops" in await prompt("qwen", odd)
    assert "{oops" in await prompt("chatml", odd)


async def test_an_order_of_roles_that_a_template_refuses_is_said():
    with pytest.raises(ApiError, match="roles must alternate"):
        await prompt("gemma", [CHAT[0], CHAT[0]], None)


def test_families_of_templates():
    found = {name: find_family("auto", source).name for name, source in TEMPLATES.items()}
    others = {"llama": "llama3_json", "mistral": "mistral", "pythonic": "pythonic", "harmony": "openai"}
    assert found == {name: others.get(name, "hermes") for name in TEMPLATES}
