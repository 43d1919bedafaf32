"""The body of a completion: its prompts, as texts or tokens, and the fields that chats do not have."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from .model_request import faulty
from .requests import MAX_CHOICES, MAX_LOGPROBS, TOKEN_ID_BOUND, GenerationRequest, TokenId

MAX_PROMPTS = 1024
COMPLETION_MAX_TOKENS = 16

PromptInput = str | list[int]
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_Several = Field(min_length=1, max_length=MAX_PROMPTS)
_AsSent = str | _TokenIds | Annotated[list[str], _Several] | Annotated[list[_TokenIds], _Several]


class CompletionRequest(GenerationRequest):
    """A text to go on with. Fields of OpenAI's that are not served are refused by name; unknown ones are ignored."""

    prompt: list[PromptInput] = Field(
        min_length=1, max_length=MAX_PROMPTS, description="A text, a list of texts, token ids, or a list of such lists."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=0,
        lt=1 << 31,
        description=f"Most tokens of the answer; 0 only with `echo`. Default: {COMPLETION_MAX_TOKENS}.",
    )
    max_completion_tokens: int | None = Field(
        default=None, ge=0, lt=1 << 31, description="The newer name of `max_tokens`, which chats have."
    )
    best_of: int | None = Field(
        default=None, ge=1, le=MAX_CHOICES, description="Sample so many answers, and give the `n` likeliest."
    )
    logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="Likeliest tokens to report for each place of the answer."
    )
    echo: bool = Field(default=False, description="Show the prompt before the answer.")
    add_special_tokens: bool = Field(
        default=True, description="Begin a text with the special tokens that the tokenizer adds."
    )

    @field_validator("prompt", mode="plain", json_schema_input_type=_AsSent)
    @classmethod
    def _prompts(cls, prompt: Any) -> list[PromptInput]:
        return list_prompts(prompt, MAX_PROMPTS)

    @model_validator(mode="after")
    def _one_limit(self) -> "CompletionRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise faulty("max_completion_tokens and max_tokens mean the same, and differ", "max_completion_tokens")
        if self.max_tokens is None:
            self.max_tokens = self.max_completion_tokens
        return self

    @model_validator(mode="after")
    def _completion_fields_agree(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < self.choices:
            raise faulty("best_of must be at least n", "best_of")
        if self.best_of is not None and self.best_of > self.choices and self.stream:
            raise faulty("best_of cannot be streamed; leave it out or equal to n", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise faulty("max_tokens must be at least 1, or echo be true", "max_tokens")
        return self

    @property
    def samples(self) -> int:
        """Sequences to run for each prompt."""
        return self.best_of or self.choices


def list_prompts(prompt: Any, most: int) -> list[PromptInput]:
    """Return str | list[str] | list[int] | list[list[int]] as a list of `most` prompts at most. Raises ValueError.

    Token ids are such as any vocabulary may have: a tokenizer's library raises what it likes for others.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise ValueError("must be a text, a list of texts, a list of token ids or a list of such lists, and not empty")
    if len(prompt) > most and not _are_integers(prompt):
        raise ValueError(f"at most {most} prompts in one request")
    if _are_integers(prompt):
        return [_in_bounds(prompt)]
    if all(isinstance(p, str) for p in prompt):
        return prompt
    if all(isinstance(p, list) and p and _are_integers(p) for p in prompt):
        return [*map(_in_bounds, prompt)]
    raise ValueError("a list must hold texts only, token ids only, or lists of token ids only, none of them empty")


def _are_integers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int}


def _in_bounds(ids: list[int]) -> list[int]:
    if min(ids) < 0 or max(ids) >= TOKEN_ID_BOUND:
        raise ValueError(f"a token id is at least 0 and below {TOKEN_ID_BOUND}")
    return ids
