"""Whatever a grammar lets through, its family's parser reads, and the arguments are of the schema."""

import functools
import json
import random

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from peftserve.server.api.assistant.families import FAMILIES, find_family
from peftserve.server.api.assistant.grammars import Function, Shape, Thoughts, grammar_of, rule_of
from peftserve.server.api.assistant.reading import Reading
from peftserve.server.api.assistant.thinking import THINKING
from peftserve.server.api.openai.grammar_checks import fault_of

SCHEMAS = {
    "get": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 99},
            "b": {"$ref": "#/$defs/word"},
            "c": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"word": {"type": "string", "maxLength": 4}},
    },
    "get_more": {
        "type": "object",
        "properties": {"n": {"enum": ["x", None, 1.5]}},
        "required": ["n"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
FUNCTIONS = [Function(name, schema) for name, schema in SCHEMAS.items()]
MARKS = sorted({mark for family in FAMILIES for mark in family.marks} | {"<think>", "</think>"})
FORMS = [family for family in FAMILIES if family.form is not None]


@functools.cache
def vocabulary(special):
    """(tokenizer, the grammar's tokenizer, what stands for a mark) with marks as special tokens or as text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["</s>", *(MARKS if special else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["get_more name arguments parameters <tool_call>"], trainer)
    known = LLTokenizer(tokenizer.to_str(), eos_token=0)
    return tokenizer, known, lambda mark: f"<[{tokenizer.token_to_id(mark)}]>" if special else json.dumps(mark)


def walk(shape, special, seed):
    """A text that the grammar allows, at random; ends where it may."""
    tokenizer, known, mark = vocabulary(special)
    matcher = LLMatcher(known, grammar_of(shape, mark))
    assert not matcher.is_error(), matcher.get_error()
    draw, ids = random.Random(seed), []
    ends = {tokenizer.token_to_id(mark) for mark in MARKS} - {None}
    while not matcher.is_stopped() and len(ids) < 600:
        mask = matcher.compute_logit_bias()
        allowed = [token for token, bias in enumerate(mask) if bias]
        quick = [token for token in allowed if token in ends or token == 0]
        token = draw.choice(quick if quick and draw.random() < 0.2 else allowed)
        if token == 0:
            break
        assert matcher.consume_token(token)
        ids.append(token)
    else:
        assert matcher.is_accepting(), "the walk has found no end"
    return tokenizer.decode(ids, skip_special_tokens=False)


def read(text, family, thoughts=None, single=False):
    thinking = next((way for way in THINKING.values() if thoughts and way.begin == thoughts.begin), None)
    reading = Reading(family, frozenset(SCHEMAS), single, thinking, bool(thoughts and thoughts.is_open))
    parser = reading.new_parser()
    first, last = parser.push(text), parser.flush()
    calls = {}
    for delta in first.calls + last.calls:
        name, arguments = calls.get(delta.index, ("", ""))
        calls[delta.index] = (name + (delta.name or ""), arguments + delta.arguments)
    return first.content + last.content, list(calls.values())


THOUGHTS = [None, Thoughts("<think>", "</think>", True), Thoughts("<think>", "</think>", False)]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("family", FORMS, ids=lambda family: f"{family.name}-{family.form.begin}")
def test_calls_that_have_to_be_are_calls(family, special):
    channels = Thoughts("<|channel|>", "<|end|>", False)
    for seed in range(12):
        single = bool(seed % 2)
        thoughts = None if not special else channels if family.name == "openai" else THOUGHTS[seed % 3]
        shape = Shape(family.form, FUNCTIONS, forced=True, single=single, thoughts=thoughts)
        text = walk(shape, special, seed)
        content, calls = read(text, family, thoughts)
        assert content == "", text
        assert len(calls) == 1 if single else calls, text
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])


@pytest.mark.parametrize(
    "family", [family for family in FORMS if family.name != "openai"], ids=lambda f: f"{f.name}-{f.form.begin}"
)
def test_calls_that_may_be_are_of_their_schema(family):
    """Free text with special marks: a walk that comes to a mark has to go on with a call."""
    found = 0
    for seed in range(25):
        text = walk(Shape(family.form, FUNCTIONS, single=True), True, seed)
        _, calls = read(text, family)
        found += len(calls)
        assert len(calls) <= 1
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        if not calls:
            assert not family.form.begin or family.form.begin not in text
    assert 0 < found < 25 or not family.form.begin


def test_a_mark_that_is_text_binds_what_follows_it():
    tokenizer, known, mark = vocabulary(False)
    for single in (False, True):
        matcher = LLMatcher(known, grammar_of(Shape(find_family("hermes", None).form, FUNCTIONS, single=single), mark))
        assert matcher.consume_tokens(tokenizer.encode("Let me see. <tool_call").ids)
        assert matcher.consume_tokens(tokenizer.encode(">").ids)
        assert matcher.compute_ff_bytes() == b'\n{"name": "'
        assert matcher.consume_tokens(tokenizer.encode('\n{"name": "now", "arguments": {}}\n</tool_call>').ids)
        assert matcher.is_accepting()
        assert matcher.is_stopped() == single


def test_an_answer_of_a_form_or_a_call_behind_thoughts():
    tokenizer, known, mark = vocabulary(True)
    answer = LLMatcher.grammar_from_json_schema({"const": {"ok": True}}, overrides={"whitespace_flexible": False})
    form = find_family("hermes", None).form
    for functions, thoughts in ((FUNCTIONS, THOUGHTS[1]), ((), THOUGHTS[1]), (FUNCTIONS, None)):
        shape = Shape(form, functions, answer=answer, thoughts=thoughts)
        for text, allowed in [
            ('{"ok":true}', True),
            ('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', bool(functions)),
            ("words", False),
        ]:
            matcher = LLMatcher(known, grammar_of(shape, mark))
            said = f"Hm, {{\n</think>\n{text}" if thoughts else text
            ids = tokenizer.encode(said).ids
            assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == allowed, said
    lark = grammar_of(Shape(answer='start: "yes"', thoughts=Thoughts("<|channel|>", "<|end|>", False)), mark)
    matcher = LLMatcher(known, lark)
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>yes"
    assert matcher.consume_tokens(tokenizer.encode(said).ids)
    assert matcher.is_stopped()


SPACES = [{"whitespace_flexible": False}, {"whitespace_pattern": "[ \\n]{1,4}"}]


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("family", FORMS, ids=lambda family: f"{family.name}-{family.form.begin}")
def test_an_answer_that_begins_as_calls_do_is_not_in_their_way(family, spaces):
    tokenizer, known, mark = vocabulary(True)
    blank = "" if spaces is SPACES[0] else "\n"
    for key in ("answer", "name", "a"):
        schema = {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}
        answer = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=spaces)
        grammar = grammar_of(Shape(family.form, FUNCTIONS, answer=answer, spaces=spaces), mark)
        matcher = LLMatcher(known, grammar)
        assert matcher.consume_tokens(tokenizer.encode(f'{{{blank}"{key}":{blank}"get x"}}').ids)
        assert matcher.is_accepting()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"$schema": "http://json-schema.org/draft-04/schema#"},
        {"$schema": "http://json-schema.org/draft-04/schema#", "id": "urn:own"},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:own"},
        {"$id": 5},
    ],
)
def test_references_are_looked_up_in_the_parameters_of_any_draft(fields):
    word = {"type": "string", "maxLength": 4}
    schema = {"type": "object", "properties": {"w": {"$ref": "#/definitions/word"}}, "definitions": {"word": word}}
    for family in FORMS:
        rule = rule_of(Function("f", {**fields, **schema}), family.form, None)
        assert fault_of(f"start: {rule}\n") == ""


@pytest.mark.parametrize("spaces", SPACES)
def test_calls_without_a_mark_are_read_beside_an_answer(spaces):
    family = find_family("llama3_json", None)
    answer = LLMatcher.grammar_from_json_schema('{"type": "string", "maxLength": 3}', overrides=spaces)
    found = 0
    for seed in range(25):
        text = walk(Shape(family.form, FUNCTIONS, answer=answer, spaces=spaces), True, seed)
        content, calls = read(text, family)
        found += bool(calls)
        assert content == ("" if calls else text)
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    assert 0 < found < 25
