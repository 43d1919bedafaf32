"""Fields that OpenAI's or vLLM's servers know and this one does not serve.

Leaving such a field out, or giving it the value that changes nothing, is fine; anything else is refused by name,
never ignored: the answer would not be what was asked for.
"""

from collections.abc import Mapping
from typing import Any

_NOTHING: tuple[Any, ...] = (None, False, "", [], {})

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "tools": _NOTHING,
    "tool_choice": (None, "none", "auto"),
    "functions": _NOTHING,
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "suffix": _NOTHING,
    "audio": _NOTHING,
    "modalities": (None, ["text"]),
    "prediction": _NOTHING,
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
    "use_beam_search": _NOTHING,
    "length_penalty": (None, 1, 1.0),
    "prompt_embeds": _NOTHING,
    "truncate_prompt_tokens": (None,),
    "allowed_token_ids": _NOTHING,
    "bad_words": _NOTHING,
    "logits_processors": _NOTHING,
    "structured_outputs": _NOTHING,
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "guided_choice": _NOTHING,
    "guided_grammar": _NOTHING,
    "documents": _NOTHING,
    "chat_template": (None,),
}


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first field that is not served."""
    for name, neutral in NEUTRAL_VALUES.items():
        if name in body and body[name] not in neutral:
            raise ValueError(f"{name} is not supported by this server; leave it out")
