"""What the numbers among the flags may be. A mistake is a CommandError that names the flag."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import CommandError
from .lengths import Range, parse

COUNTS = ("num_requests", "concurrency")
POSITIVE = ("rate", "duration", "alpha", "slo_ttft")


def check(chosen: Mapping[str, Any]) -> None:
    """chosen: values by the flags' names, of those that are set."""
    for name in COUNTS:
        if chosen.get(name, 1) < 1:
            raise _mistake(name, chosen[name], "1 or more")
    for name in POSITIVE:
        if not 0 < chosen.get(name, 1) < math.inf:
            raise _mistake(name, chosen[name], "more than 0")
    if not 0 <= chosen.get("cv", 1) < math.inf:
        raise _mistake("cv", chosen["cv"], "0 or more")
    if chosen.get("seed", 0) < 0:
        raise _mistake("seed", chosen["seed"], "0 or more")


def lengths_of(name: str, value: str | Range) -> Range:
    """value: a flag's text, or a preset's own."""
    try:
        return value if isinstance(value, Range) else parse(value)
    except ValueError as error:
        raise _mistake(name, value, str(error)) from None


def _mistake(name: str, value: object, what: str) -> CommandError:
    return CommandError(f"--{name.replace('_', '-')}: {value} is not {what}")
