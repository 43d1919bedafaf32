"""POST /v1/completions, as OpenAI has it, with vLLM's extra fields."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import partial

from fastapi import Request, Response
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from ..http.bodies import read_json
from ..services import Services
from ..text.tokenizer import Tokenizer
from .answers import UsageCounter, answer, new_id, usage_of
from .completion_request import COMPLETION_MAX_TOKENS, CompletionRequest
from .event_stream import TextFrames, frame
from .generation import Generation, Plan, SequenceDelta, TokenizedPrompt, Turns
from .logprobs import completion_logprobs, prompt_logprobs, spelling
from .planning import (
    check_ids,
    check_min_tokens,
    cut_of,
    encode_prompts,
    fit_length,
    judged_text,
    salt_of,
    weighted_adapters,
)
from .resolution import who_answers
from .responses import Completion, CompletionChoice, Usage
from .structured import grammar_of
from .text_deltas import Delta, ShownToken

CHOICE = 10  # microseconds to make one, beside one for each token that it shows


async def create_completion(request: Request, services: Services) -> Response:
    body = await read_json(request, CompletionRequest)
    plan = await _plan(services, request, body)
    builder = CompletionBuilder(body, plan.tokenizer)
    return await answer(services, request, plan, builder.whole, builder.stream)


async def _plan(services: Services, request: Request, body: CompletionRequest) -> Plan:
    info = services.model()
    grammar = await grammar_of(body)
    judged = partial(judged_text, info, services.tokenizer(), body.prompt[0])
    resolved = await who_answers(services, request, body, judged)
    with services.adapters.leases.held(resolved):  # until `answer` holds them: no await comes in between
        tokenizer, ends = await services.speech_of(resolved)
        wanted = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        cut = cut_of(info, body, resolved.virtual_tokens + wanted)
        prompts = await encode_prompts(info, tokenizer, body.prompt, body.add_special_tokens, cut)
    check_ids(info, body, prompts, resolved)
    rerank = body.samples > body.choices  # the best are chosen by their logprobs
    scored = _most(body.prompt_logprobs, body.logprobs if body.echo else None, 0 if body.max_tokens == 0 else None)
    sampling = [
        body.sampling(
            max_tokens=fit_length(info, prompt, body.max_tokens, COMPLETION_MAX_TOKENS, resolved.virtual_tokens),
            logprobs=_most(body.logprobs, 0 if rerank else None),
            prompt_logprobs=scored,
            defaults=info.sampling_defaults,
            grammar=grammar,
        )
        for prompt in prompts
    ]
    check_min_tokens(body, sampling)
    adapters = weighted_adapters(resolved, body.task_id)
    salt = salt_of(request, body)
    return Plan(body, resolved, adapters, prompts, sampling, body.samples, tokenizer, salt, judged, ends)


def _most(*numbers: int | None) -> int | None:
    return max((number for number in numbers if number is not None), default=None)


class CompletionBuilder:
    """Build the answer to one request, whole or as a stream."""

    def __init__(self, body: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._echo = Echo(tokenizer, body.skip_special_tokens) if body.echo else None
        plain = body.logprobs is None and not body.echo and not body.return_token_ids
        self._text_only = plain and not body.continuous_usage
        self._id, self._created = new_id("cmpl", body.request_id)

    async def whole(self, generation: Generation) -> Completion:
        wholes = await generation.collect()
        usage = usage_of(generation.plan, wholes)
        choices: list[CompletionChoice] = []
        turns = Turns()
        for prompt, sample in self._best(generation.plan, wholes):
            choices.append(self._choice(len(choices), prompt, sample, first=True))
            await turns.spend(CHOICE + len(sample.shown) + (len(prompt.token_ids) if self._echo is not None else 0))
        return self._completion(generation, choices, usage)

    async def stream(self, generation: Generation) -> AsyncGenerator[bytes]:
        counter = UsageCounter(generation.plan)
        begun: set[int] = set()
        text_frames = TextFrames(lambda index, text: self._chunk(generation, index, Delta(text), first=False))
        async with aclosing(generation.deltas()) as steps:
            async for deltas in steps:
                yield b"".join(self._frames(generation, deltas, begun, counter, text_frames))
        if self._body.include_usage:
            yield frame(self._completion(generation, [], counter.usage()))

    def _frames(
        self,
        generation: Generation,
        deltas: list[SequenceDelta],
        begun: set[int],
        counter: UsageCounter,
        text_frames: TextFrames,
    ) -> Iterator[bytes]:
        for index, delta in deltas:
            counter.add(index, delta)
            first = index not in begun
            if not first and not self._has_content(delta):
                continue
            begun.add(index)
            if self._text_only and delta.finish_reason is None:
                yield text_frames(index, delta.text)
            else:
                usage = counter.usage() if self._body.continuous_usage else None
                yield frame(self._chunk(generation, index, delta, first, usage))

    def _chunk(
        self, generation: Generation, index: int, delta: Delta, first: bool, so_far: Usage | None = None
    ) -> Completion:
        prompt = generation.plan.prompts[index // generation.plan.samples]
        usage = so_far if self._body.include_usage else UNSET
        return self._completion(generation, [self._choice(index, prompt, delta, first)], usage)

    def _best(self, plan: Plan, wholes: list[Delta]) -> list[tuple[TokenizedPrompt, Delta]]:
        """Return the n answers of each prompt; of best_of, those that the model finds most likely as a whole."""
        chosen = []
        for number, prompt in enumerate(plan.prompts):
            samples = wholes[number * plan.samples : (number + 1) * plan.samples]
            if plan.samples > self._body.choices:
                samples.sort(key=lambda sample: sample.cumulative_logprob, reverse=True)
            chosen += [(prompt, sample) for sample in samples[: self._body.choices]]
        return chosen

    def _completion(
        self, generation: Generation, choices: list[CompletionChoice], usage: Usage | UnsetType | None
    ) -> Completion:
        return Completion(
            id=self._id, created=self._created, model=generation.resolved.model, choices=choices, usage=usage
        )

    def _choice(self, index: int, prompt: TokenizedPrompt, delta: Delta, first: bool) -> CompletionChoice:
        body, token_bytes = self._body, spelling(self._tokenizer.token_bytes, self._body.return_tokens_as_token_ids)
        shown = delta if self._echo is None else self._echo.apply(prompt, delta, first)
        choice = CompletionChoice(index, shown.text, None, delta.finish_reason, delta.stop_reason)
        if body.logprobs is not None:
            choice.logprobs = completion_logprobs(shown.shown, token_bytes, body.logprobs)
        if body.prompt_logprobs is not None and delta.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(delta.prompt_logprobs, token_bytes)
        if body.return_token_ids:
            choice.token_ids = delta.token_ids
            choice.prompt_token_ids = prompt.token_ids if first else UNSET
        return choice

    def _has_content(self, delta: Delta) -> bool:
        """Return whether a delta is worth a chunk: one whose text is held back for now is not."""
        scored = delta.shown and self._body.logprobs is not None
        return bool(delta.text or scored or delta.finish_reason or self._body.return_token_ids)


class Echo:
    """Make an answer's deltas into those of prompt and answer together."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens

    def apply(self, prompt: TokenizedPrompt, delta: Delta, first: bool) -> Delta:
        """Return the delta with the prompt in it, or moved behind it. first: the prompt comes with this delta."""
        text = self._text(prompt)
        moved = [replace(token, offset=token.offset + len(text)) for token in delta.shown]
        if not first:
            return replace(delta, shown=moved)
        return replace(delta, text=text + delta.text, shown=[*self._tokens(prompt, delta), *moved])

    def _text(self, prompt: TokenizedPrompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(prompt.token_ids, self._skip_special_tokens)

    def _tokens(self, prompt: TokenizedPrompt, delta: Delta) -> list[ShownToken]:
        entries = delta.prompt_logprobs or [None] * len(prompt.token_ids)
        detokenizer = self._tokenizer.detokenizer(self._skip_special_tokens)
        tokens, offset = [], 0
        for token_id, entry in zip(prompt.token_ids, entries, strict=True):
            tokens.append(ShownToken(token_id, offset, entry))
            offset += len(detokenizer.push(token_id))
        return tokens
