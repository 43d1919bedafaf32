"""Logprobs of tokens in the forms of OpenAI's completions and chats, and vLLM's for prompts."""

from collections.abc import Callable, Sequence

from ...wire.messages import Logprob, TokenLogprobs
from .responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from .text_deltas import ShownToken

TokenBytes = Callable[[int], bytes]


def spelling(token_bytes: TokenBytes, as_ids: bool | None) -> TokenBytes:
    """Return how tokens are written: by their bytes, or as vLLM's `token_id:17`."""
    return (lambda token_id: f"token_id:{token_id}".encode()) if as_ids else token_bytes


def completion_logprobs(tokens: Sequence[ShownToken], token_bytes: TokenBytes, num_top: int) -> CompletionLogprobs:
    return CompletionLogprobs(
        text_offset=[token.offset for token in tokens],
        token_logprobs=[token.logprobs.chosen.logprob if token.logprobs else None for token in tokens],
        tokens=[completion_token(token_bytes(token.token_id)) for token in tokens],
        top_logprobs=[_top(token.logprobs, token_bytes, num_top) for token in tokens],
    )


def chat_logprobs(tokens: Sequence[ShownToken], token_bytes: TokenBytes, num_top: int) -> ChatLogprobs:
    return ChatLogprobs([_chat_token(t.logprobs, token_bytes, num_top) for t in tokens if t.logprobs is not None])


def prompt_logprobs(entries: Sequence[TokenLogprobs | None], token_bytes: TokenBytes) -> PromptLogprobs:
    """Return vLLM's form: for each prompt token but the first, token id (as text) to logprob, the chosen one among
    them.
    """
    return [None if entry is None else _prompt_entry(entry, token_bytes) for entry in entries]


def completion_token(content: bytes) -> str:
    """Return a token as OpenAI's completions write it: text, or `bytes:\\xe4` where it is part of a character."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _top(entry: TokenLogprobs | None, token_bytes: TokenBytes, num_top: int) -> dict[str, float] | None:
    """Return the likeliest tokens with their logprobs, best first, and behind them the one that came, if it is none."""
    if entry is None:
        return None
    shown = list(entry.top[:num_top])
    if entry.chosen.token_id not in {top.token_id for top in shown}:
        shown.append(entry.chosen)
    best = {completion_token(token_bytes(top.token_id)): top.logprob for top in reversed(shown)}
    return dict(reversed(best.items()))


def _chat_token(entry: TokenLogprobs, token_bytes: TokenBytes, num_top: int) -> ChatTokenLogprob:
    content = token_bytes(entry.chosen.token_id)
    return ChatTokenLogprob(
        token=content.decode(errors="replace"),
        logprob=entry.chosen.logprob,
        bytes=list(content),
        top_logprobs=[_chat_top(top, token_bytes(top.token_id)) for top in entry.top[:num_top]],
    )


def _chat_top(top: Logprob, content: bytes) -> TopLogprob:
    return TopLogprob(content.decode(errors="replace"), top.logprob, list(content))


def _prompt_entry(entry: TokenLogprobs, token_bytes: TokenBytes) -> dict[str, PromptLogprob]:
    return {
        str(top.token_id): PromptLogprob(top.logprob, top.rank, token_bytes(top.token_id).decode(errors="replace"))
        for top in (entry.chosen, *entry.top)
    }
