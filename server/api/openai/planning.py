"""From a checked body to a plan: prompts, lengths that fit, sampling parameters. The same for all routes."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from peftserve.adapters.resolved import Resolved

from ...wire.messages import ModelInfo, SamplingParams, WeightedAdapter
from ..http.auth import TENANT
from ..http.errors import bad_request
from ..text.tokenizer import Tokenizer
from .generation import TokenizedPrompt
from .model_request import AnsweredRequest, faulty
from .requests import GenerationRequest


@dataclass(frozen=True)
class Cut:
    """How much of a prompt stays. most: tokens; None for all of them. left: whether its beginning is cut off."""

    most: int | None = None
    left: bool = True

    def __call__(self, prompt: TokenizedPrompt) -> TokenizedPrompt:
        """Return the prompt, or what stays of it, whose text is then that of its tokens."""
        ids = prompt.token_ids
        if self.most is None or len(ids) <= self.most:
            return prompt
        return TokenizedPrompt(ids[len(ids) - self.most :] if self.left else ids[: self.most])


WHOLE = Cut()


def cut_of(info: ModelInfo, body: AnsweredRequest, taken: int) -> Cut:
    """Return how prompts are cut. taken: positions of the context that are not the prompt's.

    Raises ApiError where more tokens are to stay than fit.
    """
    most, room = body.truncate_prompt_tokens, info.max_model_len - taken
    if most is None:
        return WHOLE
    if most > room or room < 1:
        raise faulty(
            f"truncate_prompt_tokens: at most {max(room, 0)} tokens of a prompt fit this model's context beside the "
            f"{taken} that are taken otherwise",
            "truncate_prompt_tokens",
        )
    return Cut(room if most == -1 else most, body.truncation_side != "right")


async def encode_prompts(
    info: ModelInfo,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    add_special_tokens: bool,
    cut: Cut = WHOLE,
) -> list[TokenizedPrompt]:
    """Return the prompts with their tokens. cut: what stays of them.

    A prompt that cannot fit the context is refused before any is encoded, unless it is cut. Raises ApiError.
    """
    for prompt in prompts:
        if cut.most is None:
            _check_length(info, tokenizer, prompt)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(await tokenizer.encode_all(texts, add_special_tokens))
    whole = [
        TokenizedPrompt(next(encoded), prompt) if isinstance(prompt, str) else TokenizedPrompt(prompt)
        for prompt in prompts
    ]
    return [cut(prompt) for prompt in whole]


def judged_text(info: ModelInfo, tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    """Return what routes judge a prompt by. Of token ids, whose number is not checked yet, only so many as may fit."""
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt[: info.max_model_len])


def check_ids(info: ModelInfo, body: GenerationRequest, prompts: Sequence[TokenizedPrompt], resolved: Resolved) -> None:
    """Check the ids. Raises ApiError for those that neither the model nor the adapter has, and for empty prompts."""
    check_prompts(info, prompts, resolved)
    vocabulary = resolved.vocabulary(info.vocab_size)
    _check_vocabulary(vocabulary, body.stop_token_ids or (), "stop_token_ids")
    _check_vocabulary(vocabulary, tuple(body.logit_bias or ()), "logit_bias")


def check_prompts(info: ModelInfo, prompts: Sequence[TokenizedPrompt], resolved: Resolved) -> None:
    """Check the prompts' ids. Raises ApiError for unknown ones, and for empty prompts."""
    for prompt in prompts:
        if not prompt.token_ids:
            raise bad_request("The prompt is empty: it has no tokens.", "prompt")
        _check_vocabulary(resolved.vocabulary(info.vocab_size), prompt.token_ids, "prompt")


def weighted_adapters(resolved: Resolved, task_id: int | None) -> list[WeightedAdapter]:
    """Return the adapters as the engine takes them. Raises InvalidAdapter for a task that is missing or unknown."""
    tasks = resolved.tasks(task_id)
    return [WeightedAdapter(digest, weight, tasks.get(digest, 0)) for digest, weight in resolved.weights().items()]


def fit_length(
    info: ModelInfo, prompt: TokenizedPrompt, wanted: int | None, default: int | None, virtual_tokens: int = 0
) -> int:
    """Return how many tokens to generate: what was asked for, else what fits, at most the default.

    Raises ApiError where none fits.

    virtual_tokens: positions that the adapter takes.
    """
    length = len(prompt.token_ids) + virtual_tokens
    room = info.max_model_len - length
    needed = 1 if wanted is None else wanted
    if room < needed:
        virtual = f"{virtual_tokens} of the adapter's own, " if virtual_tokens else ""
        raise bad_request(
            f"This model's maximum context length is {info.max_model_len} tokens. However, you requested "
            f"{length + needed} tokens ({len(prompt.token_ids)} in the prompt, {virtual}{needed} in the "
            "completion). Please reduce the length of the prompt or of the completion.",
            "prompt",
            "context_length_exceeded",
        )
    if wanted is not None:
        return wanted
    return room if default is None else min(room, default)


def check_min_tokens(body: GenerationRequest, sampling: Sequence[SamplingParams]) -> None:
    smallest = min(parameters.max_tokens for parameters in sampling)
    if (body.min_tokens or 0) > smallest:
        raise bad_request(f"min_tokens must be at most max_tokens, which is {smallest} here.", "min_tokens")


def salt_of(request: Request, body: AnsweredRequest) -> str:
    """Return the salt that keeps the prefix caches of different keys apart, and of requests that ask for it.

    No salt of one key's requests is one of another's: it says where the owner's name ends.
    """
    owner, own = request.scope[TENANT].owner, body.cache_salt or ""
    return f"{len(owner)}:{owner}{own}" if owner or own else ""


def _check_length(info: ModelInfo, tokenizer: Tokenizer, prompt: str | list[int]) -> None:
    most, unit = (
        (tokenizer.most_in_context, "characters") if isinstance(prompt, str) else (info.max_model_len, "tokens")
    )
    if len(prompt) > most:
        raise bad_request(
            f"This model's maximum context length is {info.max_model_len} tokens. However, a prompt has {len(prompt)} "
            f"{unit}, and at most {most} are taken. Please reduce the length of the prompt.",
            "prompt",
            "context_length_exceeded",
        )


def _check_vocabulary(vocabulary: int, ids: Sequence[int], param: str) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
        raise bad_request(f"{param} holds a token id outside of the vocabulary of {vocabulary} tokens.", param)
