"""Parsers of what a flag, an environment variable or a key of the configuration file says.

Every parser takes text and returns its value, or raises ValueError with the end of the sentence "'x' is not ...".
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SCHEMES = ("hub", "hf", "huggingface", "s3", "gs", "gcs", "http", "https")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def text(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value


def path(value: str) -> Path:
    return Path(text(value)).expanduser()


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


def seconds(value: str) -> float:
    try:
        number = float(value.removesuffix("s"))
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise ValueError("is not a number of seconds")
    return number


def size(value: str) -> int:
    """Return bytes: `2GiB` and `512KiB` count in powers of 1024, `512MB` and `2G` of 1000, a bare number as it is."""
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("is not a size such as 2GiB, 512MB or 1073741824")
    number, unit, binary = match.groups()
    num_bytes = int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()])
    if num_bytes < 1:
        raise ValueError("is not a size of one byte or more")
    return num_bytes


def size_or_none(value: str) -> int:
    """Return bytes as `size` does, or 0 for no limit."""
    return 0 if value.strip() == "0" else size(value)


def show_size(num_bytes: int) -> str:
    """Return a size as `size` reads it, in the largest unit of which it is a whole number."""
    unit = next(unit for unit in reversed(_POWERS) if num_bytes % 1024 ** _POWERS[unit] == 0)
    return f"{num_bytes // 1024 ** _POWERS[unit]}{unit}{'iB' if unit else ''}"


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return value

    return parse


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
    try:
        module = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos}") from None
    match module:
        case {"name": str(name), "path": str(folder)} if name and folder:
            return name, folder
    raise ValueError('is not an object with "name" and "path"')
