"""The reference of all routes and schemas as Markdown, from the server's OpenAPI document. Knows OpenAPI 3.1 only."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
Json = Mapping[str, Any]

_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} keys",
    "pattern": "like `{}`",
}


def reference(document: Json) -> str:
    """Return a section for each route, in the document's order, and one for each named schema, by name."""
    schemas = document.get("components", {}).get("schemas", {})
    guarded = bool(document.get("security"))
    routes = [
        _route(method, path, item[method], bool(item[method].get("security", guarded)))
        for path, item in document["paths"].items()
        for method in METHODS
        if method in item
    ]
    named = [_schema(name, schemas[name]) for name in sorted(schemas)]
    return "\n\n".join(["## Routes", *routes, *(["## Schemas", *named] if named else [])])


def _route(method: str, path: str, operation: Json, needs_key: bool) -> str:
    parts = [f"### `{method.upper()} {path}`", _text(operation.get("description") or operation.get("summary", ""))]
    parts += ["Needs a key where the server has any."] if needs_key else []
    if parameters := operation.get("parameters"):
        parts.append(_table("parameter", "in", map(_parameter, parameters)))
    if body := operation.get("requestBody"):
        kinds = [f"`{kind}`: {_type(content.get('schema', {}))}" for kind, content in body["content"].items()]
        parts.append("Body, " + ("required" if body.get("required") else "optional") + ": " + "; ".join(kinds) + ".")
        parts += _examples(body["content"])
    parts.append(_table("status", "answer", map(_response, *zip(*operation["responses"].items(), strict=True))))
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            parts += _examples(response.get("content", {}), f"Example, {status}:")
    return "\n\n".join(part for part in parts if part)


def _schema(name: str, schema: Json) -> str:
    parts = [f"### {name}", _text(schema.get("description", ""))]
    if properties := schema.get("properties"):
        required = schema.get("required", ())
        rows = (_field(field, content, field in required) for field, content in properties.items())
        parts.append(_table("field", "type", rows, "default"))
    else:
        parts.append(f"{_type(schema)}{_limits(schema, ', ')}.")
    parts += [_block("Example:", value) for value in schema.get("examples", ())[:1]]
    return "\n\n".join(part for part in parts if part)


def _table(first: str, second: str, rows: Iterator[str], *more: str) -> str:
    heads = [first, second, *more, "meaning"]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *rows])


def _parameter(parameter: Json) -> str:
    schema = parameter.get("schema", {})
    said = [_type(schema) + _limits(schema, ", "), parameter.get("description", "")]
    return f"| `{parameter['name']}` | {parameter['in']} | {_cell('. '.join(part for part in said if part))} |"


def _response(status: str, response: Json) -> str:
    kinds = [f"`{kind}`: {_type(content.get('schema', {}))}" for kind, content in response.get("content", {}).items()]
    headers = [f"`{name}`: {header.get('description', '')}" for name, header in response.get("headers", {}).items()]
    said = ". ".join(part for part in (response.get("description", ""), *headers) if part)
    return f"| {status} | {'; '.join(kinds)} | {_cell(said)} |"


def _field(name: str, schema: Json, is_required: bool) -> str:
    default = "required" if is_required else f"`{json.dumps(schema['default'])}`" if "default" in schema else ""
    said = [_limits(schema), schema.get("description", "")]
    return f"| `{name}` | {_type(schema)} | {_cell(default)} | {_cell('. '.join(part for part in said if part))} |"


def _type(schema: Json) -> str:
    """Return a schema's type in words; named ones are links to their sections."""
    if ref := schema.get("$ref"):
        name = str(ref).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key, word in (("anyOf", " or "), ("oneOf", " or "), ("allOf", " and ")):
        if key in schema:
            return word.join(dict.fromkeys(map(_type, schema[key])))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema.get('items', {}))}"
        case "object" if isinstance(schema.get("additionalProperties"), dict) and schema["additionalProperties"]:
            return f"object of {_type(schema['additionalProperties'])}"
        case list(kinds):
            return " or ".join(map(str, kinds))
        case str(kind):
            return kind
    return "any"


def _limits(schema: Json, before: str = "") -> str:
    """Return what a schema asks of its values; of alternatives, what each of them asks."""
    found = [text.format(_number(schema[key])) for key, text in _LIMITS.items() if key in schema]
    found += [limits for choice in schema.get("anyOf", ()) if (limits := _limits(choice))]
    return before + ", ".join(found) if found else ""


def _number(value: Any) -> Any:
    """Return 10.0, as exclusive limits are written, as 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _examples(content: Mapping[str, Json], title: str = "Example:") -> list[str]:
    """Return the first example of each kind of content that has any, as blocks of JSON or text."""
    blocks = []
    for media in content.values():
        named = [example["value"] for example in media.get("examples", {}).values()]
        blocks += [_block(title, value) for value in ([media["example"]] if "example" in media else named[:1])]
    return blocks


def _block(title: str, value: Any) -> str:
    """Return an example as JSON; one that is a text already, such as a stream's events, as it is."""
    language, text = ("", value) if isinstance(value, str) else ("json", json.dumps(value, indent=2))
    return f"{title}\n\n```{language}\n{text.rstrip()}\n```"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _text(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())
