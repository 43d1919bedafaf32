"""What in a JSON schema has no grammar, and where. Knows schemas, and asks a function about each."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

MOST_ASKED = 256  # parts of one schema
_DEFINITIONS = ("$defs", "definitions")
_OF_NAMES = ("properties", "patternProperties", *_DEFINITIONS)  # schemas by name
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")

Part = tuple[tuple[str, ...], Any]


def find_fault(schema: Any, fault_of: Callable[[Any], str], is_over: Callable[[], bool]) -> tuple[str, ...]:
    """Return the path to the innermost part for which `fault_of` has anything to say; () for the whole.

    fault_of: returns what is wrong with a schema, "" if nothing is. is_over: returns whether there is no time to ask
    about another part; what was found so far has to do.
    """
    asked = 0
    path: tuple[str, ...] = ()
    definitions = {key: schema[key] for key in _DEFINITIONS if isinstance(schema, Mapping) and key in schema}
    parts = _parts(schema)
    while asked < MOST_ASKED and not is_over() and (found := next(parts, None)) is not None:
        asked += 1
        inner, part = found
        whole = {**definitions, **part} if isinstance(part, Mapping) else part  # for references
        if fault_of(whole):
            path += inner
            parts = _parts(part)
    return path


def _parts(schema: Any) -> Iterator[Part]:
    """Yield the schemas right inside a schema, each with the path to it."""
    if not isinstance(schema, Mapping):
        return
    for key in _OF_NAMES:
        if isinstance(named := schema.get(key), Mapping):
            yield from (((key, str(name)), part) for name, part in named.items())
    for key in _LISTS:
        if isinstance(several := schema.get(key), list):
            yield from (((key, str(place)), part) for place, part in enumerate(several))
    for key in _SINGLE:
        if isinstance(part := schema.get(key), Mapping):
            yield (key,), part


_OLDER = ("disallow", "extends", "divisibleBy")


def find_older(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield keywords of older drafts, which llguidance leaves out of account: place, keyword, what is right."""
    waiting: list[tuple[str, Any]] = [("#", schema)]
    while waiting:
        place, part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        for keyword in _OLDER:
            if keyword in part:
                yield place, keyword, "is of an older draft; write it as draft 2020-12 does"
        for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(part.get(keyword), bool):
                yield place, keyword, "has to be a number, as in draft 2020-12"
        if isinstance(part.get("required"), bool):
            yield place, "required", "has to be a list of names, as in draft 2020-12"
        waiting += [("/".join((place, *path)), inner) for path, inner in _parts(part)]


def without_neutral(schema: Any) -> Any:
    """Return a schema without the keywords that llguidance refuses although they change nothing."""
    if not isinstance(schema, Mapping):
        return schema
    changed = {key: value for key, value in schema.items() if not (key == "uniqueItems" and value is False)}
    for key in changed.keys() & {*_OF_NAMES}:
        if isinstance(named := changed[key], Mapping):
            changed[key] = {name: without_neutral(part) for name, part in named.items()}
    for key in changed.keys() & {*_LISTS, *_SINGLE}:
        part = changed[key]
        changed[key] = [*map(without_neutral, part)] if isinstance(part, list) else without_neutral(part)
    return changed
