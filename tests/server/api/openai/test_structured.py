import asyncio
import threading

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.openai import grammar_checks, structured
from peftserve.server.api.openai.completion_request import CompletionRequest
from peftserve.server.api.openai.structured import grammar_of


class Bytes:
    """A tokenizer whose tokens are bytes."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<eos>")
    special_token_ids = (256,)

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()))
MATRIX = 'root ::= row+\nrow ::= "[" [0-9] ("," [0-9]){1,2} "]"  # two or three\n   | "-"'
NESTED = 'root ::= "(" root ")" | "\\u00e9\\"" [^\\x00-\\x1f\\]-]'


def make(field, content, **options):
    """The grammar of a body's answers."""
    outputs = {"structured_outputs": {field: content, **options}} if options else {field: content}
    return asyncio.run(grammar_of(CompletionRequest.model_validate({"prompt": "", **outputs})))


def is_of(field, content, text, **options):
    matcher = LLMatcher(TOKENIZER, make(field, content, **options), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("field", "content", "taken", "refused"),
    [
        (
            "guided_json",
            {"type": "array", "items": {"type": "integer"}},
            ["[]", "[1, 2]", "[\n    1\n]"],
            ["[1,     2]", "[a]"],
        ),
        ("guided_json", '{"enum": ["a", 2]}', ['"a"', "2"], ["a", "3"]),
        ("guided_json", True, ['{"a": null}', "1"], ["", "{"]),
        ("guided_json", {"type": "array", "uniqueItems": False}, ["[1]"], ["1"]),
        ("response_format", {"type": "json_object"}, ['{"a": {"b": [1]}}'], ["[1]", '{"a"}']),
        ("regex", r"\d{3}/[a\/]+", ["123/a/"], ["12/a", "123/"]),
        ("regex", "^a\nb$", ["a\nb"], ["a"]),
        ("guided_choice", ["a", "ab", 'x"\n/é\\'], ["a", "ab", 'x"\n/é\\'], ["", "abc", "x"]),
        ("guided_grammar", 'start: "a" B\nB: /b+/', ["ab", "abb"], ["a"]),
        ("guided_grammar", MATRIX, ["[1,2]", "[1,2,3]-"], ["[1]", "[1,2,3,4]", ""]),
        ("guided_grammar", NESTED, ['é"x', '((é"x))'], ['(é"x', 'é"]', 'é"-']),
        ("guided_grammar", 'root ::= ws " x" | .\nws ::= [ ]*', ["   x", "\n"], ["x "]),
    ],
)
def test_forms_take_what_they_describe(field, content, taken, refused):
    assert [text for text in taken if not is_of(field, content, text)] == []
    assert [text for text in refused if is_of(field, content, text)] == []


def test_json_is_written_as_asked():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert not is_of("json", schema, '{"a": 1}', disable_any_whitespace=True)
    assert is_of("json", schema, '{"a":1}', disable_any_whitespace=True)
    assert is_of("json", schema, '{"a":__1}', whitespace_pattern="__")


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("guided_json", {"properties": {"a": {"items": {"not": {}}}}}, "guided_json.properties.a.items cannot"),
        (
            "guided_json",
            {"$ref": "#/$defs/A", "$defs": {"A": {"items": {"if": {}}}}},
            "guided_json.$defs.A.items cannot",
        ),
        (
            "guided_json",
            {"anyOf": [{"type": "integer"}, {"pattern": "(", "type": "string"}]},
            "guided_json.anyOf.1 cannot",
        ),
        (
            "guided_json",
            {"anyOf": [False, {"pattern": "(", "type": "string"}]},
            "guided_json.anyOf.1 cannot",
        ),
        ("guided_json", {"properties": {"a": 3}}, "guided_json.properties.a cannot"),
        ("guided_json", {"x-guidance": {"lenient": True}, "not": {}}, "not"),
        ("guided_json", {"properties": {"a": {"exclusiveMinimum": True}}}, "#/properties/a: exclusiveMinimum"),
        ("guided_json", {"disallow": "string"}, "#: disallow"),
        ("guided_json", {"$ref": "http://x/y"}, "http://x/y"),
        ("guided_json", "{", "cannot be read"),
        ("guided_json", "[" * 100_000, "nested too deeply"),
        ("guided_json", False, "no value"),
        ("guided_json", {"enum": ["x" * (1 << 18)]}, "at most 262144"),
        ("regex", "(a|", "unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("guided_grammar", "hello", "start:"),
        ("guided_grammar", 'start: "a" other', "other"),
        ("guided_grammar", 'root ::= "a"\n| other', "line 2: there is no rule 'other'"),
        ("guided_grammar", 'x ::= "a"', "root"),
        ("guided_grammar", 'root ::= ("a"', "not closed"),
        ("guided_grammar", "root ::= [b-a]", "b-a"),
        ("guided_grammar", 'root ::= "\\ud800"', "no character"),
        ("guided_grammar", "root ::= " + "(" * 5000, "groups"),
    ],
)
def test_what_has_no_grammar_is_refused_with_its_place(field, content, message):
    with pytest.raises(ApiError) as error:
        make(field, content)
    assert message in error.value.body.message
    assert error.value.body.param.startswith(field)


def test_two_forms_at_once_are_refused_by_name():
    body = CompletionRequest.model_validate({"prompt": "", "regex": "a", "structured_outputs": {"choice": ["a"]}})
    with pytest.raises(ApiError, match=r"structured_outputs\.choice and regex") as error:
        asyncio.run(grammar_of(body))
    assert error.value.body.param == "regex"


def test_a_place_is_looked_for_while_there_is_time(monkeypatch):
    monkeypatch.setattr(grammar_checks, "BEGINNING", 0)
    with pytest.raises(ApiError, match="not") as error:
        make("guided_json", {"properties": {"a": {"not": {}}}})
    assert error.value.body.param == "guided_json"


def test_what_takes_too_long_is_refused_as_too_complicated(monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(grammar_checks, "SECONDS", 0)
    monkeypatch.setattr(structured, "fault_of", lambda grammar: end.wait(30) and "")
    with pytest.raises(ApiError, match="takes over 10 seconds") as error:
        make("regex", "of no other test's")
    end.set()
    assert (error.value.status_code, error.value.body.code) == (400, "invalid_regex")
