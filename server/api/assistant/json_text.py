"""JSON that comes in pieces: values that are passed on as they come, and the objects that calls are written as."""

import json
import re
from collections.abc import Container

from .output import Output
from .source import Emit, Source, Steps

NO_ARGUMENTS = "{}"
ARGUMENTS = ("arguments", "parameters")

_OUTSIDE = re.compile(r"[{}\[\]\"]|[^\s\w:,.+\-{}\[\]\"]")  # what matters between strings: the last can be in no JSON
_INSIDE = re.compile(r"[\"\\]")
_SCALAR = re.compile(r"[\w.+\-]")


def value(source: Source, emit: Emit) -> Steps[bool]:
    """Pass a value on as it comes, and return whether it came to its end. What cannot belong to it is not taken."""
    first = yield from source.peek()
    if first in ("{", "["):
        return (yield from _nested(source, emit))
    if first == '"':
        emit(source.take())
        return (yield from _string(source, emit))
    return (yield from _scalar(source, emit))


def text_of(source: Source) -> Steps[str | None]:
    """Take a string, and return what it says; None for what is no string."""
    pieces: list[str] = []
    if (yield from source.peek()) != '"' or not (yield from value(source, pieces.append)):
        return None
    try:
        said: str = json.loads("".join(pieces), strict=False)
    except ValueError:
        return None
    return said


def call_object(source: Source, output: Output, keys: Container[str] = ARGUMENTS) -> Steps[bool]:
    """Read `{"name": …, "arguments": {…}}`, whose keys may come in any order.

    Return whether it is a call; if not, nothing was said. keys: what the arguments may be called. What is wrong behind
    the name and the arguments is left where it is.
    """
    if not (yield from source.skip("{")):
        return False
    name: str | None = None
    held: str | None = None  # arguments that came before the name
    begun = False
    while True:
        key = yield from _key(source)
        if key is None or source.is_full:
            return begun
        if key == "name" and name is None:
            name = yield from text_of(source)
            if name is None or not output.knows(name):
                return False
        elif key in keys and name is not None and not begun:
            begun = True
            output.call(name)
            source.release()
            if not (yield from arguments(source, output.arguments)):
                return True
        else:
            pieces: list[str] = []
            if not (yield from value(source, pieces.append)):
                return begun
            held = "".join(pieces) if key in keys else held
        yield from source.spaces()
        if not (yield from source.skip(",")):
            break
    if not (yield from source.skip("}")) or name is None:
        return begun
    if not begun:
        output.call(name)
        output.arguments(_plain(held or NO_ARGUMENTS))
    return True


def arguments(source: Source, emit: Emit) -> Steps[bool]:
    """Pass the arguments of a call on, and return whether they came to their end."""
    if (yield from source.peek()) in ("{", "["):
        return (yield from value(source, emit))
    pieces: list[str] = []
    ended = yield from value(source, pieces.append)
    emit(_plain("".join(pieces)) if ended else "".join(pieces))
    return ended


def _plain(written: str) -> str:
    """Return arguments as they are sent: some models write them as a string, or null for none."""
    if written.startswith('"'):
        try:
            return str(json.loads(written, strict=False))
        except ValueError:
            return written
    return NO_ARGUMENTS if written == "null" else written


def _key(source: Source) -> Steps[str | None]:
    """Take a key and its colon, with the white space around them."""
    yield from source.spaces()
    key = yield from text_of(source)
    yield from source.spaces()
    if key is None or not (yield from source.skip(":")):
        return None
    yield from source.spaces()
    return key


def _nested(source: Source, emit: Emit) -> Steps[bool]:
    depth = 0
    while text := (yield from source.ready()):
        found = _OUTSIDE.search(text)
        if found is None:
            emit(source.take(len(text)))
            continue
        emit(source.take(found.start()))
        if found.group() not in '{}[]"':
            return False
        emit(source.take())
        if found.group() == '"':
            if not (yield from _string(source, emit)):
                return False
            continue
        depth += 1 if found.group() in "{[" else -1
        if not depth:
            return True
    return False


def _string(source: Source, emit: Emit) -> Steps[bool]:
    """Pass on a string whose first quotation mark is taken."""
    while text := (yield from source.ready()):
        if source.is_full:
            return False
        found = _INSIDE.search(text)
        if found is None:
            emit(source.take(len(text)))
            continue
        emit(source.take(found.end()))
        if found.group() == '"':
            return True
        if (yield from source.peek()):
            emit(source.take())  # what is escaped
    return False


def _scalar(source: Source, emit: Emit) -> Steps[bool]:
    length = 0
    while (character := (yield from source.peek())) and _SCALAR.match(character) and not source.is_full:
        emit(source.take())
        length += 1
    return length > 0 and character != ""
