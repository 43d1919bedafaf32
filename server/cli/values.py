"""Parsers of what a flag, an environment variable or a key of the configuration file says.

Every parser takes text and returns its value, or raises ValueError with the end of the sentence "'x' is not ...".
"""

import ipaddress
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..sizes import parse_size

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", re.IGNORECASE)  # also of browsers' extensions
_HOST = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[?[0-9a-f:.]+\]?", re.IGNORECASE)  # no port
_PREFIX = re.compile(r"[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*")
_URL = re.compile(r"https?://[^/?#\s]+[^?#\s]*", re.IGNORECASE)
_SCHEMES = ("hub", "hf", "huggingface", "s3", "gs", "gcs", "http", "https")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def text(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value


def text_or_none(value: str) -> str | None:
    return None if text(value).lower() == "none" else value


def path(value: str) -> Path:
    return Path(text(value)).expanduser()


def template_source(value: str) -> str:
    """Return the source of a Jinja template that is given as a file's path, or by itself. Checks that it compiles."""
    source = value
    if not ("{{" in value or "{%" in value):
        try:
            source = path(value).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"is no template, and cannot be read as a file: {error}") from None
    import jinja2  # late: most commands need none
    import jinja2.ext

    try:
        jinja2.Environment(extensions=[jinja2.ext.loopcontrols]).parse(source)
    except jinja2.TemplateSyntaxError as error:
        if "generation" not in str(error):  # a tag of transformers' own
            raise ValueError(f"is no template: {error.message} (line {error.lineno})") from None
    return source


def boolean(value: str) -> bool:
    try:
        return _BOOLEANS[value.lower()]
    except KeyError:
        raise ValueError("is neither true nor false") from None


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers from low to high, both included; without high, no upper limit."""
    span = f"of {low} or more" if high is None else f"from {low} to {high}"

    def parse(value: str) -> int:
        if not re.fullmatch(r"[+-]?\d[\d_]*", value):
            raise ValueError(f"is not a whole number {span}")
        number = int(value)
        if number < low or (high is not None and number > high):
            raise ValueError(f"is not a whole number {span}")
        return number

    return parse


def finite(value: str) -> float:
    """Return a number; what JSON cannot say, no number and infinities, is none."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("is no number")
    return number


def seconds(value: str) -> float:
    try:
        number = float(value.removesuffix("s"))
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise ValueError("is not a number of seconds")
    return number


size = parse_size


def size_or_none(value: str) -> int:
    """Return bytes as `size` does, or 0 for no limit."""
    return 0 if value.strip() == "0" else size(value)


def json_object(value: str) -> str:
    """Return the text of a JSON object as it is."""
    if not isinstance(_decoded(value), dict):
        raise ValueError("is not a JSON object")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return value

    return parse


def dtype(value: str) -> str:
    """Return the name of a type of numbers; vLLM has two names for some."""
    return one_of("auto", "bfloat16", "float16", "float32")({"half": "float16", "float": "float32"}.get(value, value))


def names(value: str) -> tuple[str, ...]:
    """Return names with commas between, or those of a list in JSON, as vLLM takes them."""
    is_json = value.lstrip().startswith("[")
    found = _json_list(value) if is_json else [part.strip() for part in value.split(",")]
    if not all(found):
        raise ValueError("has an empty name in it")
    return tuple(found)


def _json_list(value: str) -> list[str]:
    try:
        items = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos}") from None
    if not all(isinstance(item, str) for item in items):
        raise ValueError("is not a list of names")
    return [item.strip() for item in items]


def origins(value: str) -> tuple[str, ...]:
    """Return origins of web pages, as browsers send them: `https://a.example:8443`, `null`, or `*` for any."""
    found = names(value)
    for origin in found:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"has {origin!r} in it, which is no origin such as https://a.example or http://localhost:3000"
            )
    return tuple(origin.lower() for origin in found)


def hosts(value: str) -> tuple[str, ...]:
    """Return names or addresses of machines, without ports: `box.example`, `*.example`, or `*` for any."""
    found = names(value)
    for host in found:
        if not _HOST.fullmatch(host):
            raise ValueError(f"has {host!r} in it, which is no name of a machine such as box.example, without a port")
    return tuple(host.lower() for host in found)


def networks(value: str) -> tuple[str, ...]:
    """Return addresses and networks: `10.0.0.7`, `10.0.0.0/8`, or `*` for any."""
    found = names(value)
    for network in found:
        try:
            if network != "*":
                ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise ValueError(f"has {network!r} in it, which is no address such as 10.0.0.7 or 10.0.0.0/8") from None
    return found


def root_path(value: str) -> str:
    """Return a prefix of paths, without the slash at its end; empty for none."""
    prefix = value.strip().strip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValueError("is not a path such as /llm")
    return f"/{prefix}" if prefix else ""


def url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError("is not an address such as http://127.0.0.1:4318")
    return value


def template(value: str) -> str:
    """Return an address in whose path `{name}` stands for an adapter's name: `hub://owner/{name}`, `/srv/{name}`."""
    scheme, separator, rest = value.rpartition("://")
    if separator and scheme.lower() not in _SCHEMES:
        raise ValueError(f"does not begin with one of {', '.join(f'{each}://' for each in _SCHEMES)} or a folder")
    if "{name}" not in (rest.partition("/")[2] if separator else rest):
        raise ValueError("has no {name} in its path, as hub://owner/{name} has")
    return value


def named_path(value: str) -> tuple[str, Path]:
    """Return name and path of `NAME=PATH`, or of vLLM's JSON object with `name` and `path`."""
    if value.lstrip().startswith("{"):
        name, folder = _from_json(value)
    else:
        name, separator, folder = value.partition("=")
        if not (name and separator and folder):
            raise ValueError("is not NAME=PATH")
    return name, Path(folder).expanduser()


def _from_json(value: str) -> tuple[str, str]:
    match _decoded(value):
        case {"name": str(name), "path": str(folder)} if name and folder:
            return name, folder
    raise ValueError('is not an object with "name" and "path"')


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos}") from None
