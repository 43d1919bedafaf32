"""Calls that are written as a list in Python: `[search(query="cats", limit=3), now()]`, as Llama 3.2 and 4 do."""

import ast
import json
import re
import warnings
from typing import Any

from .marked_calls import PYTHON_END, PYTHON_START, PYTHON_TAG
from .output import Output
from .source import MOST_HELD, Source, Steps

_NAME = re.compile(r"[\w.\-]")
_CONSTANTS = {"true": True, "false": False, "null": None}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def pythonic(source: Source, output: Output) -> Steps[None]:
    """Read a list of calls that is all of the message, or stands behind `<|python_tag|>` or `<|python_start|>`.

    A call's arguments are said when the call is whole: Python is no JSON before that.
    """
    output.content((yield from source.spaces()))
    mark = ""
    while True:
        source.keep(mark)
        yield from source.spaces()
        if not (yield from _calls(source, output)):
            output.content(source.release())
        else:
            source.release()
            output.content((yield from source.spaces()))
            yield from source.skip(PYTHON_END)
        mark = yield from source.up_to((PYTHON_START, PYTHON_TAG), output.content)
        if not mark:
            return


def _calls(source: Source, output: Output) -> Steps[bool]:
    """Read a list of calls, and return whether it has one. What is wrong behind a call is left where it is."""
    if not (yield from source.skip("[")):
        return False
    found = False
    while True:
        yield from source.spaces()
        call = yield from _call(source, output)
        if call is None:
            if found:
                output.content(source.release())
            return found
        found = True
        output.call(call[0])
        output.arguments(json.dumps(call[1], ensure_ascii=False, allow_nan=False))
        source.release()
        yield from source.spaces()
        source.keep()
        if not (yield from source.skip(",")):
            yield from source.skip("]")
            return True


def _call(source: Source, output: Output) -> Steps[tuple[str, dict[str, Any]] | None]:
    """Take `name(key=value, …)`, and return (name, arguments); None where there is no such call."""
    name = ""
    while (character := (yield from source.peek())) and _NAME.match(character) and not source.is_full:
        name += source.take()
    if not output.knows(name) or character != "(":
        return None
    written = yield from _bracketed(source)
    given = None if written is None else _keywords(written)
    return None if given is None else (name, given)


def _bracketed(source: Source) -> Steps[str | None]:
    """Take text from a bracket to the one that closes it; None where it never comes."""
    taken: list[str] = []
    open_: list[str] = []
    quote = ""
    while (character := (yield from source.peek())) and len(taken) < MOST_HELD:
        taken.append(source.take())
        if quote:
            if character == "\\" and (yield from source.peek()):
                taken.append(source.take())
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in _CLOSING:
            open_.append(_CLOSING[character])
        elif character in ")]}":
            if character != open_.pop():
                return None
            if not open_:
                return "".join(taken)
    return None


def _keywords(written: str) -> dict[str, Any] | None:
    """Return the values of `(key=value, …)` by their keys; None where they are no plain values by name."""
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know
            warnings.simplefilter("ignore")
            call = ast.parse(f"f{written}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        given = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords if keyword.arg is not None}
        json.dumps(given, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return given if len(given) == len(call.keywords) else None


class _JsonNames(ast.NodeTransformer):
    """Read JSON's names of constants as Python's: models mix them."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node


def _value(node: ast.expr) -> Any:
    return ast.literal_eval(_JsonNames().visit(node))
