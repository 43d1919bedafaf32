"""From a checked body to a plan: prompts as tokens, lengths that fit, sampling parameters. The same for all routes."""

from collections.abc import Sequence
from contextlib import ExitStack

from fastapi import Request

from ..wire.messages import ModelInfo, SamplingParams
from .auth import TENANT
from .errors import bad_request
from .generation import Generation, Plan, Prompt
from .schema import GenerationRequest
from .services import Services


def check_ids(info: ModelInfo, body: GenerationRequest, prompts: Sequence[Prompt]) -> None:
    """Raises ApiError for token ids that the model does not have, and for empty prompts."""
    for prompt in prompts:
        if not prompt.token_ids:
            raise bad_request("The prompt is empty: it has no tokens.", "prompt")
        _check_vocabulary(info, prompt.token_ids, "prompt")
    _check_vocabulary(info, body.stop_token_ids or (), "stop_token_ids")
    _check_vocabulary(info, tuple(body.logit_bias or ()), "logit_bias")


def fit_length(info: ModelInfo, prompt: Prompt, wanted: int | None, default: int | None) -> int:
    """Tokens to generate: what was asked for, else what fits, at most the default. Raises ApiError where none fits."""
    length, room = len(prompt.token_ids), info.max_model_len - len(prompt.token_ids)
    if room < (1 if wanted is None else wanted):
        raise bad_request(
            f"This model's maximum context length is {info.max_model_len} tokens. However, you requested "
            f"{length + (wanted or 1)} tokens ({length} in the prompt, {wanted or 1} in the completion). "
            "Please reduce the length of the prompt or of the completion.",
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


def salt_of(request: Request, body: GenerationRequest) -> str:
    """What keeps the prefix caches of different keys apart, and of requests that ask for it."""
    return f"{request.scope.get(TENANT, '')}{body.cache_salt or ''}"


def begin(services: Services, plan: Plan, held: ExitStack) -> Generation:
    """Find who answers, take room and leases into `held`. No await here: see `Services.hold`.

    Raises AdapterError, ApiError 429 or 503.
    """
    body = plan.body
    mixture = None if body.adapters is None else [(part.name, part.weight) for part in body.adapters]
    resolved = services.adapters.router.resolve(body.model, mixture, plan.prompts[0].token_ids, body.user)
    held.enter_context(services.hold(resolved, plan.num_sequences))
    return Generation(services, plan, resolved)


def answer_headers(generation: Generation) -> dict[str, str]:
    return {"x-peftserve-adapter": generation.resolved.label}


def _check_vocabulary(info: ModelInfo, ids: Sequence[int], param: str) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < info.vocab_size):
        raise bad_request(f"{param} holds a token id outside of the vocabulary of {info.vocab_size} tokens.", param)
