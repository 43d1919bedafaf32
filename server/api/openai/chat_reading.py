"""How the messages of one chat are read: by the operator's choice, the model's template, and what the chat asks for."""

from ...config import ServerConfig
from ..assistant.families import NONE, find_family, forced_family
from ..assistant.reading import Reading
from ..assistant.thinking import find_thinking
from ..http.errors import bad_request
from ..text.tokenizer import Tokenizer
from .chat_request import ChatRequest
from .tools import Calling


def reading_of(
    config: ServerConfig, tokenizer: Tokenizer, body: ChatRequest, calling: Calling, prompt: str
) -> Reading | None:
    """Return how to read the messages that follow a prompt; None where they are content only. Raises ApiError."""
    template = tokenizer.chat_template
    if calling.forced and config.tool_call_parser == NONE:
        raise bad_request("This server reads no calls of tools, so that none can be required.", "tool_choice")
    thinking = find_thinking(config.reasoning_parser, template)
    family = find_family(config.tool_call_parser, template) if calling.callable_ else None
    if thinking is not None and thinking.is_closed(prompt) and not body.continue_final_message:
        thinking = None
    if thinking is None and family is None:
        return None
    if family is not None and (calling.forced or body.wanted):  # what a grammar writes is what is read
        family = forced_family(family)
    is_open = thinking is not None and thinking.is_open(prompt, body.continue_final_message)
    return Reading(family, calling.names, calling.single, thinking, is_open)
