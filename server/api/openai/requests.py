"""The bodies of completions, and what they share with chats: OpenAI's fields and vLLM's beyond them, with limits.

Unknown fields are ignored, as OpenAI's own clients expect of compatible servers; known ones that would change the
answer and are not served are refused by name, never ignored: the answer would not be what was asked for. Leaving such a
field out, or giving it the value that changes nothing, is fine. Knows no engine.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...wire.messages import SamplingParams
from .adapter_fields import Named, find_named

MAX_CHOICES = 128
MAX_PROMPTS = 1024
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_MIXTURE = 16
INT64 = 1 << 63
COMPLETION_MAX_TOKENS = 16
_NAMED = "\0named"  # no field of a client's

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]], Field(max_length=MAX_STOPS)]
Prompt = str | list[int]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ModelRequest(Body):
    """named: the adapter that another server's field names, if any; found before the fields are looked at."""

    model: str | None = Field(default=None, max_length=512)
    named: Named | None = Field(default=None, validation_alias=_NAMED)

    @model_validator(mode="before")
    @classmethod
    def _look_at_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        cls._refuse_what_is_not_served(data)
        return {**data, _NAMED: named} if (named := find_named(data)) is not None else data

    @classmethod
    def _refuse_what_is_not_served(cls, data: dict[str, Any]) -> None:
        """Raises ValueError."""


class StreamOptions(Body):
    include_usage: bool = False


class MixturePart(Body):
    """One adapter of a mixture with its weight."""

    name: str = Field(min_length=1, max_length=256)
    weight: float = 1.0


class GenerationRequest(ModelRequest):
    """What completions and chats share."""

    adapters: list[MixturePart] | None = Field(default=None, min_length=1, max_length=MAX_MIXTURE)
    task_id: int | None = Field(default=None, ge=0, lt=1 << 31)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=INT64)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] | None = None
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    stop: Stops = Field(default_factory=list)  # a default list would be copied deeply each time
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=64)
    min_tokens: int | None = Field(default=None, ge=0, lt=1 << 31)
    ignore_eos: bool = False
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=1024)
    cache_salt: str | None = Field(default=None, max_length=256)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False

    @classmethod
    def _refuse_what_is_not_served(cls, data: dict[str, Any]) -> None:
        refuse_unsupported(data)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, stop: Any) -> Any:
        if stop is None:
            return []
        return [stop] if isinstance(stop, str) else stop

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _limit_biases(cls, biases: Any) -> Any:
        """Before the entries are looked at: a million faulty ones would make a million errors."""
        if isinstance(biases, dict) and len(biases) > MAX_BIASES:
            raise ValueError(f"at most {MAX_BIASES} entries")
        return biases

    @model_validator(mode="after")
    def _fields_agree(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams; set stream to true")
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs cannot be streamed")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, *, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None) -> SamplingParams:
        """For one sequence, before its seed is set. Fields that the client left out are the engine's defaults."""
        given = {name: value for name in _SAMPLED if (value := getattr(self, name)) is not None}
        given["top_k"] = max(given.get("top_k", 0), 0)
        return SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            **given,
        )


_SAMPLED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "seed", "stop_token_ids", "min_tokens"),
)


class CompletionRequest(GenerationRequest):
    prompt: list[Prompt] = Field(min_length=1, max_length=MAX_PROMPTS)
    max_tokens: int | None = Field(default=None, ge=0, lt=1 << 31)
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    add_special_tokens: bool = True

    @field_validator("prompt", mode="plain")
    @classmethod
    def _prompts(cls, prompt: Any) -> list[Prompt]:
        return _list_prompts(prompt)

    @model_validator(mode="after")
    def _completion_fields_agree(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < self.choices:
            raise ValueError("best_of must be at least n")
        if self.best_of is not None and self.best_of > self.choices and self.stream:
            raise ValueError("best_of cannot be streamed; leave it out or equal to n")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1, or echo be true")
        return self

    @property
    def samples(self) -> int:
        """Sequences to run for each prompt."""
        return self.best_of or self.choices


def _list_prompts(prompt: Any) -> list[Prompt]:
    """str | list[str] | list[int] | list[list[int]] as a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise ValueError("must be a text, a list of texts, a list of token ids or a list of such lists, and not empty")
    if len(prompt) > MAX_PROMPTS and not _are_token_ids(prompt):
        raise ValueError(f"at most {MAX_PROMPTS} prompts in one request")
    if _are_token_ids(prompt):
        return [prompt]
    if all(isinstance(p, str) for p in prompt) or all(isinstance(p, list) and p and _are_token_ids(p) for p in prompt):
        return prompt
    raise ValueError("a list must hold texts only, token ids only, or lists of token ids only, none of them empty")


def _are_token_ids(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int}


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
