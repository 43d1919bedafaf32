"""The grammar of a chat's messages: of calls that have to be made or held to their schemas, and of what was thought."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256

from ..assistant.grammars import Form, Function, Shape, Thoughts, grammar_of, rule_of
from ..assistant.reading import Reading
from ..http.errors import ApiError, bad_request
from ..text.tokenizer import Tokenizer
from .chat_request import ChatRequest
from .generation import Turns
from .grammar_checks import IsOver, fault_of, run_check
from .structured import json_spaces
from .tools import Calling, place_of

LONGEST = 1 << 17  # characters of a schema
WRITTEN = 50  # characters that are written in a microsecond
MOST_SOUND = 1 << 14

_sound: OrderedDict[bytes, None] = OrderedDict()  # digests of rules that have no fault


async def constrained(
    tokenizer: Tokenizer, body: ChatRequest, calling: Calling, reading: Reading | None, answer: str | None
) -> str | None:
    """Return the grammar of the messages, as the engine takes it; None where they may be anything.

    answer: of what the client asked for beside tools. Raises ApiError for a schema that has no grammar.
    """
    answer = None if calling.forced else answer
    is_bound = calling.forced or (_has_form(reading) and _holds(calling))
    if not is_bound and (answer is None or reading is None):
        return answer
    form = reading.family.form if reading is not None and reading.family is not None else None
    spaces = None if answer is None else json_spaces(body.whitespace)
    functions = []
    if form is not None and (is_bound or (answer is not None and calling.callable_)):
        functions = await _functions(body, calling, form, spaces)
    shape = Shape(
        form,
        functions,
        forced=calling.forced,
        single=calling.single,
        answer=answer,
        thoughts=_thoughts(reading),
        spaces=spaces,
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


async def _functions(
    body: ChatRequest, calling: Calling, form: Form, spaces: Mapping[str, object] | None
) -> list[Function]:
    """Return the tools as grammars have them. Where no call is forced, those that are not strict may take anything.

    Raises ApiError 400, 429 for their schemas.
    """
    functions, rules = [], []
    for tool in calling.callable_:
        is_bound = tool.function.strict or calling.forced
        schema = tool.schema_of_arguments if is_bound else {"type": "object"}
        functions.append(Function(tool.function.name, schema))
        if is_bound:
            rules.append((rule_of(functions[-1], form, spaces), place_of(body, tool)))
    await _check(rules)
    return functions


async def _check(rules: Sequence[tuple[str, str]]) -> None:
    """Check the rules of tools, each with its place, all in the time of one form. Raises ApiError 400, 429.

    Those that were found sound are remembered, as a client sends the same tools with every message of a chat.
    """
    unknown, turns = [], Turns()
    for rule, place in rules:
        if len(rule) > LONGEST:
            message = f"{place} has {len(rule)} characters; at most {LONGEST} are taken."
            raise bad_request(message, place, "invalid_schema")
        if sha256(rule.encode()).digest() not in _sound:
            unknown.append((rule, place))
        await turns.spend(len(rule) // WRITTEN)
    try:
        if unknown:
            await run_check(partial(_check_rules, unknown))
    except TimeoutError:
        raise _too_slow() from None
    for rule, _ in unknown:
        _sound[sha256(rule.encode()).digest()] = None
    while len(_sound) > MOST_SOUND:
        _sound.popitem(last=False)


def _check_rules(rules: Sequence[tuple[str, str]], is_over: IsOver) -> None:
    """Check rules, each with its place. Raises ApiError 400 for the first with a fault, or where time runs out."""
    for rule, place in rules:
        if is_over():
            raise _too_slow()
        if fault := fault_of(f"start: {rule}\n"):
            what = fault.splitlines()[0].rpartition("failed to compile JSON schema: ")[2]
            raise bad_request(f"{place} cannot be made into a grammar: {what}", place, "invalid_schema")


def _too_slow() -> ApiError:
    message = "The tools take too long to be compiled: give simpler schemas, or fewer."
    return bad_request(message, "tools", "invalid_schema")
