"""The vectors of one request's texts: planned, run in the engine's batch, counted as a request is.

Knows the engine's messages; knows nothing of the forms in which clients get vectors.
"""

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from peftserve.adapters.resolved import Resolved

from ...wire.messages import AddRequest, Pooling, SamplingParams, SequenceOutput, WeightedAdapter
from ..engine.vectors import pooled
from ..http.errors import ApiError, bad_request
from ..http.leaving import CLIENT_GONE, ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from ..metrics.requests import SequenceTimer
from ..services import Services
from ..tenancy.spending import TokenUse
from ..text.tokenizer import Tokenizer
from .answers import identity_headers, json_response
from .asking import asked_by
from .completion_request import PromptInput
from .generation import TokenizedPrompt
from .planning import check_prompts, cut_of, encode_prompts, fit_length, salt_of, weighted_adapters
from .pooled_request import PooledRequest
from .resolution import who_answers
from .responses import CachedTokens, PooledUsage

Array = NDArray[np.float32]

SIDE_BY_SIDE = 64  # of a request's texts; the next one begins when one has ended
SMALLEST = 1e-12  # length by which a vector of zeros is divided, as torch.nn.functional.normalize does

_ids = itertools.count(1)


@dataclass(frozen=True)
class PooledPlan:
    """The plan of one request. adapters: `resolved` for the engine."""

    body: PooledRequest
    resolved: Resolved
    adapters: list[WeightedAdapter]
    prompts: list[TokenizedPrompt]
    salt: str

    @property
    def side_by_side(self) -> int:
        """Return how many sequences of it are in flight at once."""
        return min(len(self.prompts), SIDE_BY_SIDE)

    @property
    def num_tokens(self) -> int:
        return sum(len(prompt.token_ids) for prompt in self.prompts)


@dataclass(frozen=True)
class Vectors:
    """The vectors of a request's texts, (width,) each, in their order; and what they have cost."""

    plan: PooledPlan
    values: list[Array]
    cached_tokens: int

    @property
    def usage(self) -> PooledUsage:
        tokens = self.plan.num_tokens
        return PooledUsage(tokens, tokens, CachedTokens(self.cached_tokens))


async def plan_pooled(
    services: Services,
    request: Request,
    body: PooledRequest,
    judged: Callable[[], str],
    prompts_of: Callable[[Tokenizer], Awaitable[Sequence[PromptInput]]],
    *,
    add_special_tokens: bool = True,
) -> PooledPlan:
    """Plan the vectors of texts. No await may come between the return and `answer_pooled`.

    judged: returns what routes judge content by. prompts_of: makes the texts, by the tokenizer of who answers.
    add_special_tokens: unless the body says otherwise. Raises AdapterError, ApiError.
    """
    info = services.model()
    if not info.hidden_size:
        raise bad_request("This model's hidden states cannot be had as vectors; it answers completions only.", "model")
    resolved = await who_answers(services, request, body, judged)
    special = add_special_tokens if body.add_special_tokens is None else body.add_special_tokens
    with services.adapters.leases.held(resolved), _naming(body.TEXTS):
        tokenizer = await services.tokenizer_of(resolved)
        cut = cut_of(info, body, resolved.virtual_tokens)
        prompts = await encode_prompts(info, tokenizer, await prompts_of(tokenizer), special, cut)
        check_prompts(info, prompts, resolved)
        for prompt in prompts:
            fit_length(info, prompt, 0, None, resolved.virtual_tokens)
    return PooledPlan(body, resolved, weighted_adapters(resolved, body.task_id), prompts, salt_of(request, body))


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """A context whose errors that blame a `prompt` blame the field that holds the texts."""
    try:
        yield
    except ApiError as error:
        if error.body.param == "prompt":
            error.body.param = field
        raise


async def answer_pooled(
    services: Services, request: Request, plan: PooledPlan, build: Callable[[Vectors], Awaitable[msgspec.Struct]]
) -> Response:
    """Run a plan made in this turn of the event loop, and answer with what `build` makes of the vectors.

    Raises ApiError, AdapterError, EngineDead.
    """

    async def content() -> bytes:
        return msgspec.json.encode(await build(await _run(services, plan)))

    lease = services.hold(plan.resolved, plan.side_by_side, TokenUse(plan.num_tokens))
    services.shadows.make_room()
    with lease:
        try:
            answer = await until_disconnect(request.scope[CONNECTION], content())
        except ClientGone:
            lease.close()
            return Response(status_code=CLIENT_GONE)
    return json_response(answer, headers=identity_headers(plan.resolved) | lease.headers)


async def _run(services: Services, plan: PooledPlan) -> Vectors:
    """Return the vectors of all texts. What has not ended when it is left is aborted."""
    run = _Run(services, plan)
    services.metrics.prompt_tokens.inc(plan.num_tokens)
    lanes = [asyncio.create_task(run.lane()) for _ in range(plan.side_by_side)]
    try:
        await asyncio.gather(*lanes)
    finally:
        for lane in lanes:
            lane.cancel()
    return run.vectors()


class _Run:
    """The texts of one request on their way through the engine: each lane runs one after the other."""

    def __init__(self, services: Services, plan: PooledPlan) -> None:
        self._services = services
        self._plan = plan
        self._labels = services.metrics.adapter_labels(plan.resolved)
        self._id = f"embed-{os.getpid()}-{next(_ids)}"
        self._left = iter(enumerate(plan.prompts))
        self._values: dict[int, Array] = {}
        self._cached = 0

    async def lane(self) -> None:
        """Run texts until none is left. Raises ApiError, AdapterError, EngineDead."""
        for index, prompt in self._left:
            timer = SequenceTimer(self._services.metrics, self._labels)
            try:
                vector = await pooled(self._services.engine, self._request(index, prompt), partial(self._note, timer))
            except ValueError as error:
                raise bad_request(str(error), code="sequence_failed") from None
            self._values[index] = self._finished(np.frombuffer(vector, "<f4"))

    def vectors(self) -> Vectors:
        """Return the results, once every lane has ended."""
        return Vectors(self._plan, [self._values[index] for index in range(len(self._values))], self._cached)

    def _request(self, index: int, prompt: TokenizedPrompt) -> AddRequest:
        return AddRequest(
            request_id=f"{self._id}-{index}",
            prompt_token_ids=prompt.token_ids,
            sampling=SamplingParams(max_tokens=0),
            adapters=self._plan.adapters,
            salt=self._plan.salt,
            pooling=Pooling(self._plan.body.pooling),
            **asked_by(self._services, self._plan.body.priority),
        )

    def _note(self, timer: SequenceTimer, output: SequenceOutput) -> None:
        timer.observe(output)
        self._cached += output.cached_tokens or 0

    def _finished(self, vector: Array) -> Array:
        if not np.isfinite(vector).all():
            raise bad_request("The model's hidden states of this input are not finite.", code="sequence_failed")
        if not self._plan.body.normalized:
            return vector
        return np.asarray(vector / max(float(np.linalg.norm(vector.astype(np.float64))), SMALLEST), np.float32)
