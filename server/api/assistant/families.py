"""How models write calls of tools, and the table of the families of models."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import grammars
from . import marked_calls as marked
from .grammars import Form
from .harmony import MARKS, harmony
from .marked_calls import hermes, llama3_json, mistral
from .output import NewId, Output, call_id, short_call_id
from .python_calls import pythonic
from .source import Source, Steps

Read = Callable[[Source, Output], Steps[None]]


@dataclass(frozen=True)
class Family:
    """A family's format. read: takes a whole message, content and calls. sign: a pattern that its templates have.

    marks: the special tokens with which calls are written. form: how they are written where they have to be;
    None: as Llama's JSON, as Python has no schema.
    """

    name: str
    read: Read
    sign: str
    marks: frozenset[str]
    form: Form | None
    new_id: NewId = call_id


_PYTHON = frozenset((marked.PYTHON_TAG, marked.PYTHON_START, marked.PYTHON_END))
_MISTRAL = frozenset((marked.TOOL_CALLS, marked.ARGS, marked.CALL_ID))
_HERMES = frozenset((marked.HERMES_OPEN, marked.HERMES_CLOSE))

HERMES = Family("hermes", hermes, "<tool_call>", _HERMES, grammars.HERMES)
_LLAMA_SIGN = r"<\|python_tag\|>|<\|python_start\|>|\"parameters\": dictionary"
LLAMA = Family("llama3_json", llama3_json, _LLAMA_SIGN, _PYTHON, grammars.LLAMA)

FAMILIES: tuple[Family, ...] = (
    Family("openai", harmony, r"<\|channel\|>", MARKS, grammars.HARMONY),
    Family("mistral", mistral, r"\[ARGS\]", _MISTRAL, grammars.MISTRAL_NAMED, short_call_id),
    Family("mistral", mistral, r"\[TOOL_CALLS\]", _MISTRAL, grammars.MISTRAL_LIST, short_call_id),
    HERMES,
    Family("pythonic", pythonic, r"\bfunc_?name1?\(", _PYTHON, None),
    LLAMA,
)
"""The families in the order in which a template's signs are looked for. Of two with a name, the first that it has."""

ALIASES: Mapping[str, str] = {
    "harmony": "openai",
    "qwen": "hermes",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
}

AUTO, NONE = "auto", "none"
CHOICES = (AUTO, NONE, *dict.fromkeys(family.name for family in FAMILIES), *ALIASES)


def find_family(choice: str, template: str | None) -> Family | None:
    """Return a model's family by the operator's choice; None for `none`.

    `auto`: by its template. A template that has no family's marks gets Hermes', which its models are told of.
    """
    if choice == NONE:
        return None
    rows = [row for row in FAMILIES if choice == AUTO or row.name == ALIASES.get(choice, choice)]
    default = HERMES if choice == AUTO else rows[-1]
    return next((row for row in rows if re.search(row.sign, template or "")), default)


def forced_family(family: Family) -> Family:
    """Return the family in whose form calls are written that have to be."""
    return family if family.form is not None else LLAMA
