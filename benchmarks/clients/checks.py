"""What the programs beside this one share: a server's address, tasks to ask for, and a line of JSON for each check.

Runs in the clients' own environment: imports nothing of ours.
"""

import json
import sys
from collections.abc import Callable

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
BASE_URL = f"{URL}/v1"
KEY = "none"  # the server asks for none; most clients want one
BASE, ADAPTER = "demo", "title"
PROMPT = "the quick brown fox"
MESSAGES = [{"role": "user", "content": PROMPT}]

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "celsius": {"type": "boolean"}},
    "required": ["city", "celsius"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": WEATHER},
}


def run(*checks: Callable[[], object]) -> None:
    """Run each check, which has the name of a feature, and print what became of it. A check fails by raising."""
    for check in checks:
        feature = check.__name__
        try:
            check()
            found = {"feature": feature, "ok": True}
        except Exception as error:  # whatever a client raises is what its user sees
            found = {"feature": feature, "ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
        print(json.dumps(found), flush=True)


def expect(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def expect_weather(arguments: object) -> None:
    """Check that arguments of the tool, or an answer of its schema, are what the schema asks for."""
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    expect(isinstance(found, dict) and set(found) == {"city", "celsius"}, f"not by the schema: {found!r}")
    expect(isinstance(found["city"], str) and isinstance(found["celsius"], bool), f"not by the schema: {found!r}")
