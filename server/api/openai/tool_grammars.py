"""The grammar of one chat's messages: of calls that have to be made, or held to their schemas, and of what was thought.

Knows llguidance's checks of grammars, which need no tokenizer.
"""

import asyncio
from functools import lru_cache

from llguidance import LLMatcher

from ..assistant.families import forced_family
from ..assistant.grammars import Function, Shape, Thoughts, arguments_of, grammar_of
from ..assistant.reading import Reading
from ..http.errors import bad_request
from ..text.tokenizer import Tokenizer
from .chat_request import ChatRequest
from .tools import Calling, Tool, place_of

SHORT = 4096  # characters of a schema that is checked on the event loop
LONGEST = 1 << 17


async def constrained(
    tokenizer: Tokenizer, body: ChatRequest, calling: Calling, reading: Reading | None, answer: str | None
) -> str | None:
    """Return the grammar of the messages, as the engine takes it; None where they may be anything.

    answer: of what the client asked for beside tools. Raises ApiError for a schema that has no grammar.
    """
    is_bound = calling.forced or (_has_form(reading) and _holds(calling))
    if not is_bound and (answer is None or reading is None):
        return answer
    functions = []
    if reading is not None and reading.family is not None and (is_bound or (answer is not None and calling.callable_)):
        functions = await _functions(body, calling, only_strict=not calling.forced)
    form = forced_family(reading.family).form if reading is not None and reading.family is not None else None
    shape = Shape(
        form,
        functions,
        forced=calling.forced,
        single=calling.single,
        answer=None if calling.forced else answer,
        thoughts=_thoughts(reading),
    )
    return grammar_of(shape, lambda mark: _in_grammar(tokenizer, mark))


def _has_form(reading: Reading | None) -> bool:
    """Return whether free text of a family can be held to a grammar: harmony's cannot, whose text is in messages."""
    family = reading.family if reading is not None else None
    return family is not None and family.form is not None and family.name != "openai"


def _holds(calling: Calling) -> bool:
    """Return whether calls that the model may make are held to something."""
    return bool(calling.callable_) and (calling.single or any(tool.function.strict for tool in calling.callable_))


def _thoughts(reading: Reading | None) -> Thoughts | None:
    thinking = reading.thinking if reading is not None else None
    if reading is None or thinking is None:
        return None
    return Thoughts(thinking.begin, thinking.end, reading.is_open)


def _in_grammar(tokenizer: Tokenizer, mark: str) -> str:
    token_id = tokenizer.special_id(mark)
    return f'"{mark}"' if token_id is None else f"<[{token_id}]>"


async def _functions(body: ChatRequest, calling: Calling, only_strict: bool) -> list[Function]:
    """Return the tools as grammars have them. only_strict: those that are not strict may take anything."""
    functions = []
    for tool in calling.callable_:
        free = only_strict and not tool.function.strict
        schema = {"type": "object"} if free else await _checked(body, tool)
        functions.append(Function(tool.function.name, schema))
    return functions


async def _checked(body: ChatRequest, tool: Tool) -> dict[str, object]:
    """Return the schema of a tool's arguments. Raises ApiError where it has no grammar."""
    schema = tool.schema_of_arguments
    rule, place = arguments_of(schema), place_of(body, tool)
    if len(rule) > LONGEST:
        raise bad_request(f"{place} has {len(rule)} characters; at most {LONGEST} are taken.", place, "invalid_schema")
    fault = _fault(rule) if len(rule) < SHORT else await asyncio.to_thread(_fault, rule)
    if fault:
        raise bad_request(f"{place} cannot be made into a grammar: {fault}", place, "invalid_schema")
    return schema


@lru_cache(64)
def _fault(rule: str) -> str:
    """Return what is wrong with a rule, "" if nothing is."""
    is_error, messages = LLMatcher.validate_grammar_with_warnings(f"start: {rule}\n")
    if not is_error:
        return ""
    return messages[0].splitlines()[0].rpartition("failed to compile JSON schema: ")[2][:500]
