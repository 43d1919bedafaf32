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
from ..openai.requests import ModelRequest, TokenId
from ..openai.resolution import check_model
from ..services import Services, ServicesOf
from ..text.tokenizer import Tokenizer
from .documentation import Operation

router = APIRouter(tags=["Tokens"])

MAX_TOKENS = 1 << 20


class TokenizeRequest(ModelRequest):
    """Either a prompt or messages."""

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
    """The base's tokenizer."""

    tokenizer_class: str
    chat_template: str | None
    model_max_length: int
    vocab_size: int
    special_tokens: dict[str, str]


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
    """Return the tokens of a prompt, or of messages in the model's chat template. Adapters share the tokenizer."""
    tokenizer = services.tokenizer()
    await check_model(services, body)
    if body.messages is not None:
        tokens = await tokenizer.encode(await render(tokenizer, body.messages, body), body.add_special_tokens or False)
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
    tokenizer = _with_text(services)
    await check_model(services, body)
    if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
        raise bad_request(f"tokens holds an id outside of the vocabulary of {tokenizer.vocab_size}.", "tokens")
    return json_response(Detokenized(await tokenizer.decode_long(body.tokens, skip_special_tokens=False)))


@router.get("/tokenizer_info")
@Operation(
    "Show the tokenizer",
    TokenizerInfo("PreTrainedTokenizerFast", None, 2048, 50257, {"bos_token": "<s>"}),
    errors=(400,),
)
async def tokenizer_info(services: ServicesOf) -> Response:
    """Return what a client needs to know of the tokenizer. 400 where the model has none."""
    tokenizer = _with_text(services)
    info = services.model()
    return json_response(
        TokenizerInfo(
            "PreTrainedTokenizerFast",
            tokenizer.chat_template,
            info.max_model_len,
            tokenizer.vocab_size,
            dict(tokenizer.special_tokens),
        )
    )


def _with_text(services: Services) -> Tokenizer:
    tokenizer = services.tokenizer()
    if not tokenizer.has_text:
        raise bad_request("This model has no tokenizer.")
    return tokenizer
