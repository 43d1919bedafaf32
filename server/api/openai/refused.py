"""Fields of chats that other APIs do not have, or have by another name: refused there, never ignored."""

from collections.abc import Mapping
from typing import Any

from ..http.errors import bad_request

Refused = Mapping[str, tuple[tuple[Any, ...], str]]
"""Field to the values that change nothing, and what to do in place of any other."""

OF_CHATS: Refused = {
    "n": ((None, 1), "there is one answer; leave it out"),
    "best_of": ((None, 1), "there is one answer; leave it out"),
    "prompt_logprobs": ((None,), "it is not supported here; chats have it"),
    "return_token_ids": ((None, False), "it is not supported here; chats have it"),
    "echo": ((None, False), "it is not supported here"),
    "add_generation_prompt": ((None, True), "it is not supported here; chats have it"),
    "continue_final_message": ((None, False), "it is not supported here; chats have it"),
    "include_reasoning": ((None, True), "it is not supported here; chats have it"),
    "functions": ((None, []), "its name is tools here"),
    "function_call": ((None,), "its name is tool_choice here"),
}


def refuse(body: Mapping[str, Any], refused: Refused) -> None:
    """Check that no field asks for what is not served on a route. Raises ApiError that names the first one."""
    for name, (neutral, advice) in refused.items():
        if name in body and body[name] not in neutral:
            raise bad_request(f"{name} is not served on this route: {advice}.", name)
