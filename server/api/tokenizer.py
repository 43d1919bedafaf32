"""Text to tokens and back, and chats to text through the model's own template.

Made from the `tokenizer.json` that the engine sends. Knows nothing of requests; everything a client can get wrong
is an `ApiError`.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from tokenizers import Tokenizer as FastTokenizer

from ..wire.messages import ModelInfo
from .detokenizer import ByteLevelDetokenizer, Detokenizer, TokenBytes, WindowDetokenizer, detokenize
from .errors import bad_request

LONG_TEXT = 4096  # characters from which encoding leaves the event loop to others
TEMPLATE_ARGUMENTS = frozenset(
    {"conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "return_assistant_tokens_mask"}
)


class Tokenizer:
    """A model without a tokenizer takes token ids only and answers with ids and no text."""

    def __init__(self, info: ModelInfo) -> None:
        self.vocab_size = info.vocab_size
        self.chat_template = info.chat_template
        self._render = _template_renderer() if info.chat_template is not None else None
        self.special_tokens: Mapping[str, str] = info.special_tokens
        self._fast = FastTokenizer.from_str(info.tokenizer) if info.tokenizer is not None else None
        self._byte_level = info.tokenizer is not None and _is_byte_level(info.tokenizer)
        self._special_ids = _special_ids(self._fast)
        self._token_bytes = TokenBytes(self._fast, self._byte_level) if self._fast is not None else None

        self._texts: dict[bool, dict[int, str]] = {True: {}, False: {}}  # by whether special tokens are skipped

    @property
    def has_text(self) -> bool:
        return self._fast is not None

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Raises ApiError without a tokenizer."""
        if len(text) < LONG_TEXT:
            return self._encode(text, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return detokenize(self.detokenizer(skip_special_tokens), token_ids)

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        """A new one for one sequence."""
        hidden = self._special_ids if skip_special_tokens else frozenset()
        fast, table = self._fast, self._token_bytes
        if fast is None or table is None:
            return WindowDetokenizer(lambda ids: "", frozenset())
        if self._byte_level:
            texts = self._texts[skip_special_tokens]
            return ByteLevelDetokenizer(lambda token_id: b"" if token_id in hidden else table(token_id), texts)
        return WindowDetokenizer(lambda ids: fast.decode(ids, skip_special_tokens=False), hidden)

    def token_bytes(self, token_id: int) -> bytes:
        """Of one token by itself; b"" without a tokenizer."""
        return self._token_bytes(token_id) if self._token_bytes is not None else b""

    def token_string(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        return self._fast.id_to_token(token_id) if self._fast is not None else None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        arguments: Mapping[str, Any],
    ) -> str:
        """The prompt's text. Runs in transformers' Jinja sandbox. Raises ApiError where the template refuses."""
        render = self._require_template(arguments)
        try:
            rendered = render(
                [[dict(message) for message in messages]],
                chat_template=self.chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self.special_tokens, **arguments},
            )
        except jinja2.TemplateError as error:
            raise bad_request(f"The model's chat template refuses these messages: {error}", "messages") from None
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError):
            raise bad_request("The model's chat template cannot render these messages.", "messages") from None
        text: str = rendered[0][0]
        return text

    def _require_template(self, arguments: Mapping[str, Any]) -> Callable[..., Any]:
        if self._render is None:
            raise bad_request(
                "This model has no chat template; use /v1/completions with a prompt.", code="no_chat_template"
            )
        taken = TEMPLATE_ARGUMENTS.intersection(arguments)
        if taken:
            raise bad_request(f"chat_template_kwargs may not set {sorted(taken)[0]!r}.", "chat_template_kwargs")
        return self._render

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._fast is None:
            raise bad_request("This model has no tokenizer; send the prompt as a list of token ids.", "prompt")
        try:
            ids: list[int] = self._fast.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeError):  # half a surrogate pair, through a template's argument
            raise bad_request("The text is not valid Unicode.", "prompt") from None
        return ids


def _template_renderer() -> Callable[..., Any]:
    """transformers' own, imported here: it takes a second, which the start spends while the model loads.

    It leaves torch alone. Its result is (texts, indices).
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template


def _special_ids(fast: FastTokenizer | None) -> frozenset[int]:
    if fast is None:
        return frozenset()
    return frozenset(i for i, token in fast.get_added_tokens_decoder().items() if token.special)


def _is_byte_level(tokenizer: str) -> bool:
    """Whether the decoder is GPT-2's byte alphabet and nothing else."""
    decoder = json.loads(tokenizer).get("decoder") or {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    return [step.get("type") for step in steps] == ["ByteLevel"]
