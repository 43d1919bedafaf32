"""The fields that the bodies of completions and chats share: OpenAI's and vLLM's beyond them, with limits.

Unknown fields are ignored, as OpenAI's own clients expect of compatible servers; known ones that would change the
answer and are not served are refused by name, never ignored: the answer would not be what was asked for. Leaving such a
field out, or giving it the value that changes nothing, is fine. Knows no engine.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from ...wire.messages import SamplingParams
from .model_request import INT64, AnsweredRequest, Body, faulty, refuse_unsupported
from .structured_fields import StructuredFields

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_LOGPROBS = 20
MAX_BIASES = 1024
TOKEN_ID_BOUND = 1 << 31  # which no id reaches

TokenId = Annotated[int, Field(ge=0, lt=TOKEN_ID_BOUND)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS)]


class StreamOptions(Body):
    """Options of a stream."""

    continuous_usage_stats: bool = Field(
        default=False, description="With `include_usage`: send the usage so far in every event."
    )
    include_usage: bool = Field(default=False, description="Send the usage in a last event, whose choices are empty.")


class GenerationRequest(AnsweredRequest, StructuredFields):
    """The fields that completions and chats share."""

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
    include_stop_str_in_output: bool = Field(default=False, description="Show what ended the answer in its text.")
    skip_special_tokens: bool = Field(default=True, description="Leave special tokens out of the text.")
    return_token_ids: bool | None = Field(default=None, description="Give the token ids beside the text.")
    return_tokens_as_token_ids: bool | None = Field(
        default=None, description="In logprobs, write each token as `token_id:17`."
    )

    @classmethod
    def _refuse_what_is_not_served(cls, data: dict[str, Any]) -> None:
        refuse_unsupported(data, NEUTRAL_VALUES)

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
            raise faulty("stream_options is for streams; set stream to true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise faulty("prompt_logprobs cannot be streamed", "prompt_logprobs")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    def sampling(
        self,
        *,
        max_tokens: int,
        logprobs: int | None,
        prompt_logprobs: int | None,
        grammar: str | None = None,
        defaults: Mapping[str, int | float] = MappingProxyType({}),
    ) -> SamplingParams:
        """Return one sequence's parameters, before its seed is set.

        defaults: the model's, of fields that are left out; others are the engine's.
        """
        given: dict[str, Any] = {name: defaults[name] for name in _SAMPLED if name in defaults}
        given |= {name: value for name in _SAMPLED if (value := getattr(self, name)) is not None}
        given["top_k"] = max(given.get("top_k", 0), 0)
        return SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=grammar,
            **given,
        )


_SAMPLED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "seed", "stop_token_ids", "min_tokens"),
)

_NOTHING: tuple[Any, ...] = (None, False, "", [], {})

NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "tools": _NOTHING,
    "tool_choice": (None, "none", "auto"),
    "functions": _NOTHING,
    "function_call": (None, "none", "auto"),
    "suffix": _NOTHING,
    "audio": _NOTHING,
    "modalities": (None, ["text"]),
    "prediction": _NOTHING,
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
    "use_beam_search": _NOTHING,
    "length_penalty": (None, 1, 1.0),
    "prompt_embeds": _NOTHING,
    "allowed_token_ids": _NOTHING,
    "bad_words": _NOTHING,
    "logits_processors": _NOTHING,
    "documents": _NOTHING,
    "chat_template": (None,),
    "watermarking": _NOTHING,
    "spaces_between_special_tokens": (None, True),
    "logprob_token_ids": _NOTHING,
    "repetition_detection": _NOTHING,
    "thinking_token_budget": (None, -1),
    "routed_experts_prompt_start": (None, 0),
    "kv_transfer_params": _NOTHING,
    "ec_transfer_params": _NOTHING,
    "vllm_xargs": _NOTHING,
    "mm_processor_kwargs": _NOTHING,
    "media_io_kwargs": _NOTHING,
    "verbosity": (None, "medium"),
    **dict.fromkeys(("min_new_tokens", "max_new_tokens", "n_predict", "num_predict"), (None,)),  # of other servers
    **dict.fromkeys(("options", "custom_logit_processor", "no_stop_trim", "return_hidden_states"), _NOTHING),
    **dict.fromkeys(("typical_p", "tfs_z"), (None, 1)),
    **dict.fromkeys(
        ("mirostat", "dry_multiplier", "xtc_probability", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size"),
        (None, 0),
    ),
}
"""Fields that are not served to the values that change nothing."""
