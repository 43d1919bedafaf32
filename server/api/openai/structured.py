"""From the form that a body asks for to a grammar as the engine takes it, checked without a tokenizer.

Nothing of it runs on the event loop, but for finding what was made before.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llguidance import LLMatcher

from ..http.errors import ApiError, bad_request
from .gbnf import to_lark
from .grammar_checks import SECONDS, IsOver, fault_of, run_check
from .schema_faults import find_fault, find_older, without_neutral
from .structured_fields import MAX_TEXT, Kind, StructuredFields, Wanted

MOST_KEPT = 64  # grammars, of up to MAX_TEXT
# Runs of blanks have an end: a model that has no idea would go on with them.
WHITESPACE = r"[ \t]{1,4}|\r?\n[ \t]{0,40}"
CODES: Mapping[Kind, str] = {
    "json_schema": "invalid_schema",
    "regex": "invalid_regex",
    "choice": "invalid_choice",
    "grammar": "invalid_grammar",
}

_kept: OrderedDict[tuple[Kind, str, str | None], str] = OrderedDict()


async def grammar_of(body: StructuredFields) -> str | None:
    """Return the grammar of the answers, None where they may be anything. Raises ApiError 400, 429."""
    asked = body.wanted
    if not asked:
        return None
    if len(asked) > 1:
        both = f"{asked[0].field} and {asked[1].field}"
        raise bad_request(f"{both} both ask for a form of the answer: give one of them.", asked[1].field)
    [wanted] = asked
    text = wanted.value if isinstance(wanted.value, str) else json.dumps(wanted.value, ensure_ascii=False)
    key = (wanted.kind, text, body.whitespace)
    grammar = _kept.get(key)
    if grammar is None:
        try:
            grammar = _kept[key] = await run_check(partial(_make, wanted, text, body.whitespace))
        except TimeoutError:
            raise _refusal(wanted, f"takes over {SECONDS:g} seconds to be compiled: give something simpler") from None
        if len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return grammar


def json_spaces(whitespace: str | None) -> dict[str, Any]:
    """Return llguidance's options for what may be between JSON's parts: "" for nothing, None for the usual."""
    if whitespace == "":
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": whitespace or WHITESPACE}


def _make(wanted: Wanted, text: str, whitespace: str | None, is_over: IsOver) -> str:
    """Return the grammar of a form. text: its value. Raises ApiError 400, with the place of what is wrong."""
    if len(text) > MAX_TEXT:
        raise _refusal(wanted, f"has {len(text)} characters, and at most {MAX_TEXT} are taken")
    try:
        grammar = _MAKERS[wanted.kind](text, whitespace)
    except RecursionError:
        raise _refusal(wanted, "is nested too deeply") from None
    except Exception as error:  # whatever a converter says of a text
        raise _refusal(wanted, f"cannot be read: {error}") from None
    fault = fault_of(grammar)
    if not fault:
        return grammar
    if wanted.kind != "json_schema":
        raise _refusal(wanted, f"cannot be compiled: {fault}")
    path = find_fault(json.loads(text), partial(_fault_of_part, whitespace), is_over)
    place = ".".join([wanted.field, *path])
    raise bad_request(f"{place} cannot be made into a grammar: {fault}.", place, CODES[wanted.kind])


def _fault_of_part(whitespace: str | None, part: Any) -> str:
    """Return what is wrong with a part of a schema, which may allow no value where the whole allows some."""
    try:
        return "" if part is False else fault_of(_of_schema(json.dumps(part), whitespace))
    except ValueError as error:
        return str(error)


def _refusal(wanted: Wanted, what: str) -> ApiError:
    return bad_request(f"{wanted.field} {what}."[:1000], wanted.field, CODES[wanted.kind])


def _of_schema(text: str, whitespace: str | None) -> str:
    schema = json.loads(text)
    if not isinstance(schema, dict | bool):
        raise ValueError("a JSON schema is an object, true or false")
    if isinstance(schema, dict):
        for place, keyword, why in find_older(schema):
            raise ValueError(f"at {place}: {keyword} {why}")
        schema = without_neutral(schema)
    if schema is False:
        raise ValueError("it is false, which allows no value")
    options = json_spaces(whitespace)  # in place of a client's own, which would undo them
    text = json.dumps({**({} if schema is True else schema), "x-guidance": options}, ensure_ascii=False)
    return LLMatcher.grammar_from_json_schema(text)


def _of_regex(text: str, whitespace: str | None) -> str:
    return LLMatcher.grammar_from_regex(text)


def _of_choices(text: str, whitespace: str | None) -> str:
    choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")  # one terminal: none is in another's way


def _of_grammar(text: str, whitespace: str | None) -> str:
    grammar = LLMatcher.grammar_from_lark(to_lark(text))
    # Rules as they are may be smaller than the regular expressions that they make.
    return grammar if not fault_of(grammar) else LLMatcher.grammar_from_lark(to_lark(text, flat=False))


_MAKERS: Mapping[Kind, Callable[[str, str | None], str]] = {
    "json_schema": _of_schema,
    "regex": _of_regex,
    "choice": _of_choices,
    "grammar": _of_grammar,
}
