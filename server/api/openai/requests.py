"""The fields that the bodies of completions and chats share: OpenAI's and vLLM's beyond them, with limits.

Unknown fields are ignored, as OpenAI's own clients expect of compatible servers; known ones that would change the
answer and are not served are refused by name, never ignored: the answer would not be what was asked for. Leaving such a
field out, or giving it the value that changes nothing, is fine. Knows no engine.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from peftserve.adapters.routing.bodies import MAX_MEMBERS

from ...wire.messages import SamplingParams
from .adapter_fields import Named, find_named

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_LOGPROBS = 20
MAX_BIASES = 1024
INT64 = 1 << 63
_NAMED = "\0named"  # no field of a client's

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS)]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ModelRequest(Body):
    """A body that names a model. named: the adapter that another server's field names, found before all fields."""

    model: str | None = Field(
        default=None,
        max_length=512,
        description="The base's id, an adapter's name for its newest version, `name@2` for a version, or `default`. "
        "Left out: `default`.",
    )
    named: SkipJsonSchema[Named | None] = Field(default=None, validation_alias=_NAMED)

    @model_validator(mode="before")
    @classmethod
    def _look_at_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        cls._refuse_what_is_not_served(data)
        return {**data, _NAMED: named} if (named := find_named(data)) is not None else data

    @classmethod
    def _refuse_what_is_not_served(cls, data: dict[str, Any]) -> None:
        """Check for fields that are known and not served. Raises ValueError."""


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = Field(default=False, description="Send the usage in a last event, whose choices are empty.")


class MixtureMember(Body):
    """One adapter of a mixture with its weight."""

    name: str = Field(min_length=1, max_length=256, description="An adapter's name, or `name@version`.")
    weight: float = Field(default=1.0, description="By which the adapter's bypass is multiplied.")


class GenerationRequest(ModelRequest):
    """The fields that completions and chats share."""

    adapters: list[MixtureMember] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MEMBERS,
        description="A mixture: the weighted sum of these adapters' bypasses. `model` is then left out or `default`.",
    )
    task_id: int | None = Field(
        default=None, ge=0, lt=1 << 31, description="The task, for adapters of a method that has several."
    )
    temperature: float | None = Field(default=None, ge=0, le=100, description="0 is greedy. Default: 1.")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Sample from the likeliest tokens that together have this probability."
    )
    top_k: int | None = Field(
        default=None, ge=-1, lt=INT64, description="Sample from so many of the likeliest tokens; 0 and -1: from all."
    )
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="Least probability of a token, as a part of the likeliest token's."
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Divides the scores of tokens of prompt and answer; over 1: against repetition.",
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Taken off the score of each token that the answer has."
    )
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Taken off a token's score as often as the answer has it."
    )
    logit_bias: dict[TokenId, Bias] | None = Field(
        default=None, description="Token id to what is added to its logit, of at most 1024 tokens."
    )
    seed: int | None = Field(
        default=None, ge=-INT64, lt=INT64, description="The same request with the same seed is answered alike."
    )
    # A default list would be copied deeply each time.
    stop: Stops = Field(default_factory=list, description="Texts that end the answer, which does not show them.")
    stop_token_ids: list[TokenId] | None = Field(
        default=None, max_length=64, description="Tokens that end the answer beside the model's own."
    )
    min_tokens: int | None = Field(
        default=None, ge=0, lt=1 << 31, description="Fewest tokens before the answer may end by itself."
    )
    ignore_eos: bool = Field(default=False, description="Go on behind the end-of-sequence token.")
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="Answers to each prompt. Default: 1.")
    prompt_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="Likeliest tokens to report for each place of the prompt."
    )
    stream: bool | None = Field(default=None, description="Send the answer as server-sent events while it is made.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with `stream`.")
    user: str | None = Field(default=None, max_length=1024, description="An id of the end user.")
    cache_salt: str | None = Field(
        default=None, max_length=256, description="Share cached prefixes only with requests of the same salt."
    )
    include_stop_str_in_output: bool = Field(default=False, description="Show what ended the answer in its text.")
    skip_special_tokens: bool = Field(default=True, description="Leave special tokens out of the text.")
    return_token_ids: bool = Field(default=False, description="Give the token ids beside the text.")

    @classmethod
    def _refuse_what_is_not_served(cls, data: dict[str, Any]) -> None:
        refuse_unsupported(data)

    @field_validator("stop", mode="before", json_schema_input_type=Stop | Stops | None)
    @classmethod
    def _one_or_many(cls, stop: Any) -> Any:
        if stop is None:
            return []
        return [stop] if isinstance(stop, str) else stop

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _limit_biases(cls, biases: Any) -> Any:
        """Check the number before the entries are looked at: a million faulty ones would make a million errors."""
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
        """Return one sequence's parameters, before its seed is set; fields left out are the engine's defaults."""
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
"""Fields that are not served to the values that change nothing."""


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Check that no field asks for what is not served. Raises ValueError that names the first one."""
    for name, neutral in NEUTRAL_VALUES.items():
        if name in body and body[name] not in neutral:
            raise ValueError(f"{name} is not supported by this server; leave it out")
