"""Chats to text, through the model's own template in transformers' Jinja sandbox. Knows no tokens and no requests."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from ..http.errors import bad_request
from ..private.transformers_private import template_renderer
from .long_texts import LongTexts
from .template_traits import TemplateTraits, find_traits, in_parts, takes_parts

MESSAGE = 64  # characters whose work a message is, beside its content
RESERVED = frozenset(
    {"conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "return_assistant_tokens_mask"}
)
"""What the renderer is called with, and a client's own arguments may not set."""
FAILURES = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What a template may raise, beside what it raises on purpose."""


class ChatTemplate:
    """A model's template. special_tokens: by the names that templates know them by, such as `bos_token`.

    long_texts: the threads on which long chats are rendered. whose: it is, in errors.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], long_texts: LongTexts, whose: str = "model"
    ) -> None:
        self.source = source
        self._special_tokens = special_tokens
        self._long_texts = long_texts
        self._whose = whose
        self._renderer = template_renderer()
        self._traits: TemplateTraits | None = None  # set when a chat with tools asks first
        self._takes_parts: bool | None = None  # set when a chat is rendered first

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        arguments: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt's text. arguments: a client's own, for the template. tools: definitions in OpenAI's form.

        Raises ApiError 400 where the template refuses or fails, or an argument is reserved; 429 from `LongTexts`.
        """
        _check_arguments(arguments)
        length = sum(len(message["content"]) + MESSAGE for message in messages)
        length += sum(
            len(str(extra)) for extra in (tools, *(message.get("tool_calls") for message in messages)) if extra
        )

        def work() -> str:
            return self._render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self._special_tokens, **arguments},
            )

        try:
            return await self._long_texts.run(length, work)
        except jinja2.TemplateError as error:
            raise bad_request(
                f"The {self._whose}'s chat template refuses these messages: {error}", "messages"
            ) from None
        except FAILURES:
            raise bad_request(f"The {self._whose}'s chat template cannot render these messages.", "messages") from None

    def traits(self) -> TemplateTraits:
        """Return what the template does with tools and roles."""
        if self._traits is None:
            self._traits = find_traits(self._show)
        return self._traits

    def mentions(self, name: str) -> bool:
        """Return whether the template may read an argument of this name."""
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    def _show(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str | None:
        try:
            return self._render(messages, tools=tools, add_generation_prompt=True, **self._special_tokens)
        except (jinja2.TemplateError, *FAILURES):
            return None

    def _render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        if self._takes_parts is None:
            self._takes_parts = takes_parts(self._shown)
        return self._rendered([in_parts(message) for message in messages] if self._takes_parts else messages, **options)

    def _shown(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        try:
            return self._rendered(messages, add_generation_prompt=True, **self._special_tokens)
        except (jinja2.TemplateError, *FAILURES):
            return None

    def _rendered(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        texts, _ = self._renderer([[dict(message) for message in messages]], chat_template=self.source, **options)
        text: str = texts[0]
        return text


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    taken = RESERVED.intersection(arguments)
    if taken:
        raise bad_request(f"chat_template_kwargs may not set {sorted(taken)[0]!r}.", "chat_template_kwargs")
