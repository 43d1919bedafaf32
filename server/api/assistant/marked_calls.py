"""Calls that stand behind a mark or begin the message, as JSON: Hermes and Qwen, Llama 3, Mistral."""

from .json_text import arguments, call_object
from .output import Output
from .source import Source, Steps

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG, PYTHON_START, PYTHON_END = "<|python_tag|>", "<|python_start|>", "<|python_end|>"
TOOL_CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
LONGEST_NAME = 256


def hermes(source: Source, output: Output) -> Steps[None]:
    """Read `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, with text before, between and behind."""
    while mark := (yield from source.up_to((HERMES_OPEN,), output.content)):
        source.keep(mark)
        yield from source.spaces()
        is_call = yield from call_object(source, output)
        kept = source.release()
        if not is_call:
            output.content(kept)
            continue
        yield from source.spaces()
        yield from source.skip(HERMES_CLOSE)


def llama3_json(source: Source, output: Output) -> Steps[None]:
    """Read `{"name": …, "parameters": {…}}`, several with `;` between, behind `<|python_tag|>` or as all there is."""
    output.content((yield from source.spaces()))
    yield from _json_calls(source, output)
    while mark := (yield from source.up_to((PYTHON_TAG, PYTHON_START), output.content)):
        spaces = yield from source.spaces()
        if not (yield from _json_calls(source, output, mark + spaces)):
            continue
        yield from source.skip(PYTHON_END)


def _json_calls(source: Source, output: Output, before: str = "") -> Steps[bool]:
    """Read one call after the other, and return whether there was one. before: what is content if there is none."""
    found = False
    while (yield from source.peek()) == "{":
        source.keep()
        is_call = yield from call_object(source, output)
        kept = source.release()
        if not is_call:
            output.content(kept if found else before + kept)
            return found
        found = True
        output.content((yield from source.spaces()))
        yield from source.skip(";")
        output.content((yield from source.spaces()))
    if not found:
        output.content(before)
    return found


def mistral(source: Source, output: Output) -> Steps[None]:
    """Read `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` once for each call."""
    while mark := (yield from source.up_to((TOOL_CALLS,), output.content)):
        source.keep(mark)
        yield from source.spaces()
        first = yield from source.peek()
        if first == "[":
            is_call = yield from _mistral_list(source, output)
        elif first == "{":
            is_call = yield from call_object(source, output)
        else:
            is_call = yield from _mistral_named(source, output)
        kept = source.release()
        if not is_call:
            output.content(kept)


def _mistral_list(source: Source, output: Output) -> Steps[bool]:
    """Read a list of calls; return whether it has one. What is wrong behind the last call is left where it is."""
    source.take()
    found = False
    while True:
        yield from source.spaces()
        if not (yield from call_object(source, output)):
            if found:
                output.content(source.release())
            return found
        found = True
        source.release()
        yield from source.spaces()
        source.keep()
        if not (yield from source.skip(",")):
            yield from source.skip("]")
            return True


def _mistral_named(source: Source, output: Output) -> Steps[bool]:
    """Read `name[ARGS]{…}`, also with `[CALL_ID]…` behind the name, or with nothing between name and arguments."""
    name = ""
    while (character := (yield from source.peek())) and (character.isalnum() or character in "_-."):
        name += source.take()
        if len(name) > LONGEST_NAME:
            return False
    if (yield from source.skip(CALL_ID)):
        while (yield from source.peek()).isalnum() and not source.is_full:
            source.take()
    yield from source.skip(ARGS)
    yield from source.spaces()
    if not output.knows(name) or (yield from source.peek()) != "{":
        return False
    source.release()
    output.call(name)
    yield from arguments(source, output.arguments)
    return True
