"""Chats to text, through the model's own template in transformers' Jinja sandbox. Knows no tokens and no requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from ..http.errors import bad_request
from ..private.transformers_private import template_renderer
from .long_texts import LongTexts

MESSAGE = 64  # characters whose work a message is, beside its content
RESERVED = frozenset(
    {"conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "return_assistant_tokens_mask"}
)
"""What the renderer is called with, and a client's own arguments may not set."""


class ChatTemplate:
    """A model's template. special_tokens: by the names that templates know them by, such as `bos_token`.

    long_texts: the threads on which long chats are rendered.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], long_texts: LongTexts) -> None:
        self._source = source
        self._special_tokens = special_tokens
        self._long_texts = long_texts
        self._renderer = template_renderer()

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        arguments: Mapping[str, Any],
    ) -> str:
        """Return the prompt's text. arguments: a client's own, for the template.

        Raises ApiError 400 where the template refuses or fails, or an argument is reserved; 429 from `LongTexts`.
        """
        _check_arguments(arguments)
        length = sum(len(message["content"]) + MESSAGE for message in messages)

        def work() -> str:
            return self._render(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self._special_tokens, **arguments},
            )

        try:
            return await self._long_texts.run(length, work)
        except jinja2.TemplateError as error:
            raise bad_request(f"The model's chat template refuses these messages: {error}", "messages") from None
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError):
            raise bad_request("The model's chat template cannot render these messages.", "messages") from None

    def _render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        chat = [dict(message) for message in messages]
        texts, _ = self._renderer([chat], chat_template=self._source, **options)
        text: str = texts[0]
        return text


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    taken = RESERVED.intersection(arguments)
    if taken:
        raise bad_request(f"chat_template_kwargs may not set {sorted(taken)[0]!r}.", "chat_template_kwargs")
