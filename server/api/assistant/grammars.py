"""Grammars in llguidance's notation of Lark, for messages that have to be calls, or answers of a form, behind thoughts.

Each family's calls are written as its parser reads them. What a request gives is in here as JSON only, never as Lark.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .harmony import CHANNEL, CONSTRAIN, END, MESSAGE, START
from .marked_calls import ARGS, HERMES_CLOSE, HERMES_OPEN, TOOL_CALLS

MOST_CALLS = 64  # of one message
_ANYTHING = r"/(.|\n)*/"
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

Mark = Callable[[str], str]
"""Returns what stands in a grammar for a mark: the number of a special token, or its text."""


@dataclass(frozen=True)
class Function:
    """A function to call. schema: of its arguments."""

    name: str
    schema: dict[str, Any]


@dataclass(frozen=True)
class Form:
    """How a family's calls are written. begin: the mark of a call; "" for none.

    rest: returns what follows it for some functions, whose arguments are the rules `json0`, `json1`, …; the last
    argument says whether it may be several calls. between: what separates two calls, begin and all; None: `rest` has
    them all. Where no mark tells calls from an answer, those rules are whole calls: a lexer that has one literal up to
    the arguments would let nothing else begin with a brace.
    """

    begin: str
    rest: Callable[[Sequence[Function], Mark, bool], str]
    between: str | None = None


def _object(name: str, place: int) -> str:
    """Return one call as an object."""
    before = '{"name": ' + json.dumps(name) + ', "arguments": '
    return f"{_text(before)} json{place} {_text('}')}"


def _objects(functions: Sequence[Function]) -> str:
    return "(" + " | ".join(_object(function.name, i) for i, function in enumerate(functions)) + ")"


def _hermes(functions: Sequence[Function], mark: Mark, several: bool) -> str:
    return f'"\\n" {_objects(functions)} "\\n" {mark(HERMES_CLOSE)}'


def _llama(functions: Sequence[Function], mark: Mark, several: bool) -> str:
    return "(" + " | ".join(f"json{i}" for i, _ in enumerate(functions)) + ")"


def _mistral_list(functions: Sequence[Function], mark: Mark, several: bool) -> str:
    more = f'(", " {_objects(functions)}){{0,{MOST_CALLS - 1}}}' if several else ""
    return f'" "? "[" {_objects(functions)} {more} "]"'


def _mistral_named(functions: Sequence[Function], mark: Mark, several: bool) -> str:
    return "(" + " | ".join(f"{_text(f.name)} {mark(ARGS)} json{i}" for i, f in enumerate(functions)) + ")"


def _harmony(functions: Sequence[Function], mark: Mark, several: bool) -> str:
    calls = (
        f'{_text(f"commentary to=functions.{function.name} ")} {mark(CONSTRAIN)} "json" {mark(MESSAGE)} json{i}'
        for i, function in enumerate(functions)
    )
    return "(" + " | ".join(calls) + ")"


HERMES = Form(HERMES_OPEN, _hermes, "\n")
LLAMA = Form("", _llama, "; ")
MISTRAL_LIST = Form(TOOL_CALLS, _mistral_list)
MISTRAL_NAMED = Form(TOOL_CALLS, _mistral_named, "")
HARMONY = Form(CHANNEL, _harmony)


@dataclass(frozen=True)
class Thoughts:
    """The thoughts before a message. begin, end: their marks. is_open: the prompt has the first one."""

    begin: str
    end: str
    is_open: bool


@dataclass(frozen=True)
class Shape:
    """What a message has to be.

    functions: that may be called, in `form`. forced: at least one has to be. single: at most one may be.
    answer: a grammar of what is no call, as the engine takes it; None: any text. thoughts: what may stand before.
    spaces: llguidance's options for what is between the parts of the answer's JSON, and so in calls that no mark tells
    from it; None: what models write on one line.
    """

    form: Form | None = None
    functions: Sequence[Function] = ()
    forced: bool = False
    single: bool = False
    answer: str | None = None
    thoughts: Thoughts | None = None
    spaces: Mapping[str, object] | None = None


def grammar_of(shape: Shape, mark: Mark) -> str:
    """Return the grammar of a message, as the engine takes it."""
    lines = [f"start: {'thoughts ' if shape.thoughts is not None else ''}{_body(shape, mark)}"]
    if shape.thoughts is not None:
        lines += _thoughts(shape.thoughts, mark)
    if shape.form is not None and shape.functions:
        lines += [
            f"json{i}: {rule_of(function, shape.form, shape.spaces)}" for i, function in enumerate(shape.functions)
        ]
        lines += _calls(shape.form, shape, mark)
    lark = "\n".join(lines) + "\n"
    return lark if shape.answer is None else _with_answer(lark, shape.answer)


def rule_of(function: Function, form: Form, spaces: Mapping[str, object] | None) -> str:
    """Return the rule of a function's arguments, which models write on one line, or of a whole call that has no mark.

    spaces: as in `Shape`.
    """
    if form.begin:
        return _of_schema(function.schema, _COMPACT)
    at_root = ("$schema", "x-guidance")
    parameters = {name: value for name, value in function.schema.items() if name not in at_root}
    draft = {"$schema": function.schema["$schema"]} if "$schema" in function.schema else {}
    # With an id the schema is a document of its own, in which its references are looked up.
    keyword = "id" if "draft-04" in str(draft) else "$id"
    if not isinstance(parameters.get(keyword), str):
        parameters[keyword] = f"urn:{function.name}"
    parts = {"name": {"enum": [function.name]}, "parameters": parameters}
    call = {**draft, "type": "object", "properties": parts, "required": [*parts], "additionalProperties": False}
    return _of_schema(call, spaces or _COMPACT)


def _of_schema(schema: dict[str, Any], spaces: Mapping[str, object]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': spaces})}"


def _body(shape: Shape, mark: Mark) -> str:
    answer = "@answer" if not shape.thoughts or shape.thoughts.begin != CHANNEL else "final @answer"
    if not shape.functions:
        return answer
    if shape.forced:
        return "calls"
    return f"(calls | {answer})" if shape.answer is not None else "free"


def _calls(form: Form, shape: Shape, mark: Mark) -> list[str]:
    """Return the rules of calls, and of free text with calls in it."""
    begin = mark(form.begin) if form.begin else ""
    several = not shape.single
    again = f"({_text(form.between)} call){{0,{MOST_CALLS - 1}}}" if form.between is not None and several else ""
    lines = [f"rest: {form.rest(shape.functions, mark, several)}", f"call: {begin} rest", f"calls: call {again}"]
    if not form.begin:
        return [*lines, r"free: calls | PLAIN", r"PLAIN: /([^{\s](.|\n)*)?/"]
    if begin.startswith("<["):  # a token that no text has in it
        tail = f"({begin} rest)?" if shape.single else f"({begin} rest TEXT?)*"
        return [*lines, f"free: TEXT? {tail}", r"TEXT: /(.|\n)+/"]
    found = f"found[lazy]: /(.|\\n)*{_escaped(form.begin)}/"
    free = "free: found rest | TEXT" if shape.single else "free: (found rest)* TEXT"
    return [*lines, found, free, f"TEXT: {_ANYTHING}"]


def _thoughts(thoughts: Thoughts, mark: Mark) -> list[str]:
    if thoughts.begin == CHANNEL:
        thought = f'{mark(CHANNEL)} "analysis" {mark(MESSAGE)} {_up_to(END, mark)} {mark(START)} "assistant"'
        return [f"thoughts: ({thought})?", f'final: {mark(CHANNEL)} "final" {mark(MESSAGE)}', *_lazily(END, mark)]
    gap = r"GAP: /\s{0,3}/"
    begun = f"{_up_to(thoughts.end, mark)} GAP"
    whole = begun if thoughts.is_open else f"({mark(thoughts.begin)} {begun})?"
    return [f"thoughts: {whole}", gap, *_lazily(thoughts.end, mark)]


def _up_to(end: str, mark: Mark) -> str:
    """Return text up to a mark and with it."""
    token = mark(end)
    return f"{_ANYTHING} {token}" if token.startswith("<[") else "thought"


def _lazily(end: str, mark: Mark) -> list[str]:
    """Return the rule that `_up_to` needs."""
    return [] if mark(end).startswith("<[") else [f"thought[lazy]: /(.|\\n)*{_escaped(end)}/"]


def _with_answer(lark: str, answer: str) -> str:
    """Return the grammars together. answer: Lark, or JSON with a list of grammars, of which the first begins."""
    if answer.lstrip().startswith("{"):
        first, *others = json.loads(answer)["grammars"]
    else:
        first, others = {"lark_grammar": answer}, []
    return json.dumps({"grammars": [{"lark_grammar": lark}, {**first, "name": "answer"}, *others]})


def _text(text: str) -> str:
    return json.dumps(text)


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
