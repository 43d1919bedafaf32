"""The fields of requests that want vectors of texts in place of answers. Knows no engine."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .model_request import AnsweredRequest, faulty, refuse_unsupported

_NOTHING: tuple[Any, ...] = (None, False, "", [], {})

NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "padding": (None, "do_not_pad"),
    "mm_processor_kwargs": _NOTHING,
    "media_io_kwargs": _NOTHING,
    "chat_template": (None,),
    "instruction": _NOTHING,
    "prompt_name": _NOTHING,
    "task": (None, "embed"),
    "embed_dtype": (None, "float32", "float"),
    "endianness": (None, "native", "little"),
    "rank_fields": _NOTHING,
    "max_chunks_per_doc": (None,),
    "max_tokens_per_doc": (None,),
    "output_dimension": (None,),
    "late_chunking": _NOTHING,
}
"""Fields that are not served to the values that change nothing."""


class PooledRequest(AnsweredRequest):
    """How the hidden states of each text become one vector. TEXTS: the field that holds the texts."""

    TEXTS: ClassVar[str] = "input"

    pooling: Literal["last", "mean"] = Field(
        default="last", description="The vector is the hidden state of the last token, or the mean of all."
    )
    normalize: bool | None = Field(default=None, description="Make each vector's length 1. Default: true.")
    use_activation: bool | None = Field(default=None, description="vLLM's name of `normalize`.")
    add_special_tokens: bool | None = Field(
        default=None, description="Begin a text with the special tokens that the tokenizer adds. Default: true."
    )

    @classmethod
    def _refuse_what_is_not_served(cls, data: dict[str, Any]) -> None:
        refuse_unsupported(data, NEUTRAL_VALUES)

    @field_validator("pooling", mode="before")
    @classmethod
    def _any_case(cls, pooling: Any) -> Any:
        """Take vLLM's names, which are in capitals, as well."""
        if pooling is None:
            return "last"
        return pooling.lower() if isinstance(pooling, str) and len(pooling) < 16 else pooling

    @model_validator(mode="after")
    def _names_agree(self) -> "PooledRequest":
        given = {self.normalize, self.use_activation} - {None}
        if len(given) > 1:
            raise faulty("normalize and use_activation mean the same, and differ", "use_activation")
        return self

    @property
    def normalized(self) -> bool:
        """Whether each vector has length 1."""
        return False not in (self.normalize, self.use_activation)
