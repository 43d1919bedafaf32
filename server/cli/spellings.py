"""Flags that vLLM and SGLang have and tools pass: what each is here, or why there is no such thing.

A spelling is one row of `SPELLINGS`: a function from the text to settings' values as if they had been given. It raises
ValueError with the reason where the flag asks for what is not done. None of these are documented flags of our own.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Given = Mapping[str, str]  # settings' keys with their text
Take = Callable[[str], Given]


@dataclass(frozen=True)
class Spelling:
    """A flag. take: what it stands for. switch: it takes no value, and `take` gets `true`, or `false` of its `--no-`.

    short: vLLM's short form.
    """

    name: str
    take: Take
    switch: bool = False
    short: str = ""


def same_as(key: str, **renamed: str) -> Take:
    """Return what hands a value on to a setting. renamed: values that have another name there."""
    return lambda text: {key: renamed.get(text, text)}


def means(**given: str) -> Take:
    """Return what sets settings when the flag is given, and nothing with its `--no-`."""
    return lambda text: given if text == "true" else {}


def only(*harmless: str, why: str) -> Take:
    """Return what lets values pass that ask for nothing else than what is done anyway; others are refused."""

    def take(text: str) -> Given:
        if text not in harmless:
            raise ValueError(why)
        return {}

    return take


def nothing(_: str) -> Given:
    """Take a flag that changes no answer and has nothing to act on here."""
    return {}


_ONE_DEVICE = "a base is divided by --tensor-parallel-size alone: start more servers, behind a proxy"
_FORMAT = "weights are safetensors or what transformers reads; leave it out"
_CACHE = "the KV cache has the type of the model (--dtype); --kv-cache-tokens sets its size"
_MEMORY = "--kv-cache-tokens and --adapter-memory say what memory is for; without them it is what is free"
_TOKENIZER = "the tokenizer is the model's own: put it into the model's folder"
_REVISION = "download the revision to a folder and give that as MODEL"
_PARALLEL = ("1",)

SPELLINGS = (
    Spelling("model", same_as("model")),
    Spelling("model-path", same_as("model")),
    Spelling("max-num-seqs", same_as("max_running")),
    Spelling("max-running-requests", same_as("max_running")),
    Spelling("max-num-batched-tokens", same_as("max_batch_tokens")),
    Spelling("block-size", same_as("page_size")),
    Spelling("context-length", same_as("max_model_len")),
    Spelling("max-loras-per-batch", same_as("max_loras")),
    Spelling("enable-prefix-caching", same_as("prefix_caching"), switch=True),
    Spelling("disable-radix-cache", means(prefix_caching="false"), switch=True),
    Spelling("uvicorn-log-level", same_as("log_level", trace="debug")),
    Spelling("disable-log-requests", nothing, switch=True),
    Spelling("enable-log-requests", means(access_log="text"), switch=True),
    Spelling("disable-uvicorn-access-log", nothing, switch=True),
    Spelling("disable-log-stats", nothing, switch=True),
    Spelling("disable-fastapi-docs", nothing, switch=True),
    Spelling("swap-space", nothing),  # vLLM's engine does not use it any more, either
    Spelling("lora-extra-vocab-size", nothing),
    Spelling("max-logprobs", nothing),
    Spelling("enable-chunked-prefill", only("true", why="long prompts are always taken in chunks"), switch=True),
    Spelling("max-log-len", nothing),
    Spelling("seed", only("0", why="a request says its own `seed`")),
    Spelling("tp", same_as("tensor_parallel_size"), short="-tp"),
    Spelling("tp-size", same_as("tensor_parallel_size")),
    Spelling("pipeline-parallel-size", only(*_PARALLEL, why=_ONE_DEVICE), short="-pp"),
    Spelling("data-parallel-size", only(*_PARALLEL, why=_ONE_DEVICE), short="-dp"),
    Spelling("enable-expert-parallel", only("false", why=_ONE_DEVICE), switch=True),
    Spelling("distributed-executor-backend", only("mp", "uni", why=_ONE_DEVICE)),
    Spelling("gpu-memory-utilization", only(why=_MEMORY)),
    Spelling("mem-fraction-static", only(why=_MEMORY)),
    Spelling("kv-cache-memory-bytes", only(why=_MEMORY)),
    Spelling("num-gpu-blocks-override", only(why=_MEMORY)),
    Spelling("cpu-offload-gb", only("0", "0.0", why="the base is on the device as a whole")),
    Spelling("kv-cache-dtype", only("auto", why=_CACHE)),
    Spelling("lora-dtype", only("auto", why="adapters have the type of the model: --dtype")),
    Spelling("fully-sharded-loras", only("false", why=_ONE_DEVICE), switch=True),
    Spelling("quantisation", same_as("quantization"), short="-q"),
    Spelling("load-format", only("auto", "safetensors", "hf", why=_FORMAT)),
    Spelling("tokenizer", only(why=_TOKENIZER)),
    Spelling("tokenizer-mode", only("auto", "hf", why=_TOKENIZER)),
    Spelling("skip-tokenizer-init", only("false", why=_TOKENIZER), switch=True),
    Spelling("revision", only("main", why=_REVISION)),
    Spelling("tokenizer-revision", only("main", why=_REVISION)),
    Spelling("code-revision", only("main", why=_REVISION)),
    Spelling("runner", only("auto", "generate", why="one server generates and embeds")),
    Spelling("task", only("auto", "generate", why="one server generates and embeds")),
    Spelling("speculative-config", only(why="tokens are not speculated")),
    Spelling("guided-decoding-backend", only("auto", "guidance", why="grammars run on llguidance")),
    Spelling("structured-outputs-backend", only("auto", "guidance", why="grammars run on llguidance")),
    Spelling("chat-template-content-format", only("auto", why="it is what the template takes")),
    Spelling("response-role", only("assistant", why="answers are the assistant's")),
    Spelling("limit-mm-per-prompt", only(why="prompts are text")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all spellings that are no flag of the parser yet. They are in no help: ours are."""
    for spelling in SPELLINGS:
        flags = [f"--{spelling.name}", *([spelling.short] if spelling.short else [])]
        with suppress(argparse.ArgumentError):  # there is such a flag
            parser.add_argument(*flags, dest=argparse.SUPPRESS, action=_TakenAs, spelling=spelling)


class _TakenAs(argparse.Action):
    """Puts into the namespace what a spelling stands for."""

    def __init__(self, option_strings: Sequence[str], spelling: Spelling, **options: Any) -> None:
        flags = [*option_strings, *([f"--no-{spelling.name}"] if spelling.switch else [])]
        options["nargs"] = 0 if spelling.switch else None
        super().__init__(flags, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)
        self._spelling = spelling

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, flag: str | None = None
    ) -> None:
        text = str(not str(flag).startswith("--no-")).lower() if self._spelling.switch else value
        try:
            given = self._spelling.take(text)
        except ValueError as error:
            parser.error(f"{flag}{'' if self._spelling.switch else f' {text}'}: {error}")
        for key, one in given.items():
            setattr(namespace, key, one)
