"""What a request looks like to each kind of server. All ask for greedy text of exactly the trace's length, streamed."""

import json
from collections.abc import Callable
from typing import Any

from .trace import Request

Body = dict[str, Any]


def vllm(request: Request) -> Body:
    """OpenAI's completions with vLLM's extra fields, which peftserve, vLLM and SGLang take."""
    return {
        **openai(request),
        "ignore_eos": True,
        "return_token_ids": True,  # a chunk for each token, also where its text is held back
    }


def openai(request: Request) -> Body:
    """Nothing but OpenAI's own fields: an output may end before its length."""
    return {**_plain(request), "prompt": request.prompt(), "stream_options": {"include_usage": True}}


def transformers(request: Request) -> Body:
    """`transformers serve` takes text alone and refuses fields that it does not know. -1 is no token of any model."""
    config = {"eos_token_id": -1, "pad_token_id": 0}
    return {**_plain(request), "prompt": text(request), "generation_config": json.dumps(config)}


def _plain(request: Request) -> Body:
    return {"model": request.model, "max_tokens": request.output_tokens, "temperature": 0, "stream": True}


def text(request: Request) -> str:
    """The prompt's ids as words: about as many tokens, as the tokenizer has it."""
    return " ".join(str(token) for token in request.prompt())


DIALECTS: dict[str, Callable[[Request], Body]] = {"vllm": vllm, "openai": openai, "transformers": transformers}
