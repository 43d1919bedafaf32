"""The bodies of /v1/embeddings, /score and /rerank: their texts, beside what `pooled_request.py` has."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from .chat_request import MAX_MESSAGES, Message
from .completion_request import PromptInput, list_prompts
from .model_request import Body, faulty
from .pooled_request import PooledRequest
from .requests import TokenId

MAX_INPUTS = 2048
_Several = Field(min_length=1, max_length=MAX_INPUTS)
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_AsSent = str | _TokenIds | Annotated[list[str], _Several] | Annotated[list[_TokenIds], _Several]


class EmbeddingRequest(PooledRequest):
    """Texts, tokens or a chat to make into vectors: OpenAI's fields, with vLLM's beyond them."""

    input: list[PromptInput] | None = Field(
        default=None, description="A text, a list of texts, token ids, or a list of such lists."
    )
    messages: list[Message] | None = Field(
        default=None, min_length=1, max_length=MAX_MESSAGES, description="A chat, in place of `input`: one vector."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="`base64`: of float32 in little-endian. Default: `float`."
    )
    dimensions: int | None = Field(default=None, ge=1, description="The width of this model's vectors, and no other.")
    add_generation_prompt: bool = Field(default=False, description="Of a chat: begin the assistant's next message.")
    continue_final_message: bool = Field(default=False, description="Of a chat: leave the last message open.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, max_length=64, description="Arguments of the model's chat template."
    )

    @field_validator("input", mode="plain", json_schema_input_type=_AsSent | None)
    @classmethod
    def _inputs(cls, given: Any) -> list[PromptInput] | None:
        return None if given is None else list_prompts(given, MAX_INPUTS)

    @model_validator(mode="after")
    def _embedding_fields_agree(self) -> "EmbeddingRequest":
        if (self.input is None) == (self.messages is None):
            raise faulty("send either input or messages", "input")
        if self.continue_final_message and self.add_generation_prompt:
            raise faulty("continue_final_message needs add_generation_prompt to be false", "continue_final_message")
        return self


Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]


def _texts(given: Any) -> Any:
    """Return one text or many as a list, each as text: Cohere's clients send objects that hold one."""
    many = given if isinstance(given, list) else [given]
    return [one["text"] if isinstance(one, dict) and isinstance(one.get("text"), str) else one for one in many]


class ScoreRequest(PooledRequest):
    """Pairs of texts to compare: one with each of many, or as many with as many."""

    TEXTS: ClassVar[str] = "text_2"

    text_1: Texts = Field(
        validation_alias=AliasChoices("text_1", "data_1", "queries"),
        description="A text or a list of texts. Also `data_1` and `queries`.",
    )
    text_2: Texts = Field(
        validation_alias=AliasChoices("text_2", "data_2", "documents", "items"),
        description="A text or a list of texts. Also `data_2`, `documents` and `items`.",
    )

    @field_validator("text_1", "text_2", mode="before", json_schema_input_type=str | Texts)
    @classmethod
    def _as_texts(cls, given: Any) -> Any:
        return _texts(given)

    @model_validator(mode="after")
    def _lengths_agree(self) -> "ScoreRequest":
        if len(self.text_1) not in (1, len(self.text_2)):
            raise faulty("text_1 has to hold one text, or as many as text_2", "text_1")
        return self


class RerankDocument(Body):
    """A document as Jina's and Cohere's clients send it."""

    text: str


class RerankRequest(PooledRequest):
    """Documents to put into the order of their likeness to a query: Jina's and Cohere's fields."""

    TEXTS: ClassVar[str] = "documents"

    query: str
    documents: Texts = Field(description="Texts, or objects with a `text`.")
    top_n: int | None = Field(default=None, ge=0, description="Most documents in the answer. Default, and 0: all.")
    return_documents: bool | None = Field(default=None, description="Give each document's text. Default: true.")

    @field_validator("documents", mode="before", json_schema_input_type=Annotated[list[str | RerankDocument], _Several])
    @classmethod
    def _as_texts(cls, given: Any) -> Any:
        return _texts(given) if isinstance(given, list) else given
