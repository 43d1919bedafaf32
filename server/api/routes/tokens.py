"""POST /tokenize, POST /detokenize and GET /tokenizer_info, as vLLM has them."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Response
from pydantic import Field, model_validator

from ..http.bodies import json_body
from ..http.errors import bad_request
from ..openai.answers import json_response
from ..openai.chat import render
from ..openai.chat_request import MAX_MESSAGES, Message
from ..openai.model_request import ModelRequest
from ..openai.requests import TokenId
from ..openai.resolution import tokenizer_named
from ..openai.tools import ToolFields
from ..services import ServicesOf
from ..text.tokenizer import Tokenizer
from .documentation import Operation

router = APIRouter(tags=["Tokens"])

MAX_TOKENS = 1 << 20


class TokenizeRequest(ToolFields, ModelRequest):
    """Either a prompt or messages, which may have tools as a chat's have."""

    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool | None = Field(
        default=None, description="Default: true for a prompt; false for messages, whose template writes its own."
    )
    return_token_strs: bool | None = Field(default=None, description="Give the tokens as text, too.")
    add_generation_prompt: bool = Field(default=True, description="Begin the assistant's next message.")
    continue_final_message: bool = Field(default=False, description="Leave the last message open.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, max_length=64, description="Arguments of the model's chat template."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        if self.messages is None and self.all_tools:
            raise ValueError("tools are for messages; a prompt has none")
        return self


class DetokenizeRequest(ModelRequest):
    """Tokens to make into text."""

    tokens: list[TokenId] = Field(max_length=MAX_TOKENS, fail_fast=True)


class Tokenized(msgspec.Struct):
    """The tokens of a text."""

    count: int
    max_model_len: Annotated[int, msgspec.Meta(description="Most tokens of prompt and answer together.")]
    tokens: list[int]
    token_strs: Annotated[list[str] | None, msgspec.Meta(description="With `return_token_strs`.")] = None


class Detokenized(msgspec.Struct):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(msgspec.Struct):
    """The base's tokenizer, with the names that tokenizer_config.json has.

    What lm-eval asks for is always there, so that it knows which token begins a text and which ends it.
    """

    tokenizer_class: str
    chat_template: str | None
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: Annotated[str | None, msgspec.Meta(description="The tokenizer's, else the model's first.")]
    pad_token: str | None
    unk_token: str | None
    special_tokens: Annotated[dict[str, str], msgspec.Meta(description="All that the tokenizer names.")]


@router.post("/tokenize")
@Operation(
    "Make text into tokens",
    Tokenized(2, 2048, [464, 2068]),
    body=TokenizeRequest,
    examples={
        "Prompt": {"prompt": "the quick", "return_token_strs": True},
        "Messages": {"messages": [{"role": "user", "content": "hi"}]},
    },
    errors=(404,),
)
async def tokenize(
    services: ServicesOf, body: Annotated[TokenizeRequest, Depends(json_body(TokenizeRequest))]
) -> Response:
    """Return the tokens of a prompt, or of messages in the chat template, in the words of the adapter that is named."""
    tokenizer = await tokenizer_named(services, body)
    if body.messages is not None:
        text = await render(tokenizer, body.messages, body, body.calling.definitions)
        tokens = await tokenizer.encode(text, body.add_special_tokens or False)
    else:
        tokens = await tokenizer.encode(body.prompt or "", body.add_special_tokens is not False)
    strings = await tokenizer.token_strings(tokens) if body.return_token_strs else None
    return json_response(Tokenized(len(tokens), services.model().max_model_len, tokens, strings))


@router.post("/detokenize")
@Operation(
    "Make tokens into text",
    Detokenized("the quick"),
    body=DetokenizeRequest,
    examples={"Tokens": {"tokens": [64, 68]}},
    errors=(404,),
)
async def detokenize(
    services: ServicesOf, body: Annotated[DetokenizeRequest, Depends(json_body(DetokenizeRequest))]
) -> Response:
    """Return the text of tokens, special ones shown."""
    tokenizer = _with_text(await tokenizer_named(services, body))
    if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
        raise bad_request(f"tokens holds an id outside of the vocabulary of {tokenizer.vocab_size}.", "tokens")
    return json_response(Detokenized(await tokenizer.decode_long(body.tokens, skip_special_tokens=False)))


@router.get("/tokenizer_info")
@Operation(
    "Show the tokenizer",
    TokenizerInfo(
        "PreTrainedTokenizerFast",
        None,
        2048,
        50257,
        "<s>",
        "</s>",
        None,
        None,
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    errors=(400,),
)
async def tokenizer_info(services: ServicesOf) -> Response:
    """Return what a client needs to know of the tokenizer. 400 where the model has none."""
    tokenizer = _with_text(services.tokenizer())
    info, named = services.model(), tokenizer.special_tokens
    ends = await tokenizer.token_strings(info.eos_token_ids[:1])
    return json_response(
        TokenizerInfo(
            "PreTrainedTokenizerFast",
            tokenizer.chat_template,
            info.max_model_len,
            tokenizer.vocab_size,
            named.get("bos_token"),
            named.get("eos_token") or (ends[0] if ends else None) or None,
            named.get("pad_token"),
            named.get("unk_token"),
            dict(named),
        )
    )


def _with_text(tokenizer: Tokenizer) -> Tokenizer:
    if not tokenizer.has_text:
        raise bad_request("This model has no tokenizer.")
    return tokenizer
