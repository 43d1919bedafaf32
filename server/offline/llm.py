"""`LLM`: a base model and its adapters in the caller's own process. Knows no HTTP."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.resolved import Resolved
from peftserve.adapters.store import AdapterStore

from ..api.http.errors import ApiError
from ..api.openai.stop_strings import StopStrings
from ..api.openai.text_deltas import SequenceDecoder
from ..api.text.tokenizer import Tokenizer
from ..config import EngineConfig
from ..engine.engine import Engine
from ..wire.messages import AddRequest, Pooling, PoolingKind, SamplingParams, WeightedAdapter
from .adapters import Adapter, NamedAdapters
from .checks import Message, Prompt, adapter_each, check_task_id, list_chats, list_prompts, list_stops, one_each
from .completion import Completion, Running, RunningPrompt, RunningSequence
from .sampling import check_sampling

T = TypeVar("T")


class LLM:
    """A base model with its adapters. Not thread-safe: one thread calls it, with one call at a time.

        with LLM("meta-llama/Llama-3.1-8B", adapters={"sql": "adapters/sql"}) as llm:
            [answer] = llm.generate(["How many users are there?"], adapter="sql")
            print(answer.text)

    model: a local folder or a hub id in Hugging Face format. adapters: names to folders with PEFT's checkpoints.
    options: fields of `EngineConfig`.
    """

    def __init__(self, model: str | Path, *, adapters: Mapping[str, str | Path] | None = None, **options: Any) -> None:
        """Load the model. Raises UnservableModel for one that cannot be served right, AdapterError for an adapter."""
        self._ids = count()
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="offline-tokenizer")
        with ExitStack() as resources:
            resources.callback(self._thread.shutdown)
            store = AdapterStore(Path(resources.enter_context(TemporaryDirectory(prefix="peftserve-"))))
            resources.callback(store.close)
            self.engine = Engine(EngineConfig(model=str(model), store=store.adapters, **options))
            resources.callback(self.engine.close)
            self._tokenizer = Tokenizer(self.engine.info)
            self._adapters = NamedAdapters(self.engine, store, self.engine.info.model_name)
            for name, folder in (adapters or {}).items():
                self.add_adapter(name, folder)
            self._resources = resources.pop_all()

    def add_adapter(self, name: str, path: str | Path) -> AdapterRecord:
        """Register the adapter in folder `path` as the newest version of `name`.

        Returns its name, version, digest and facts (method, rank, bytes). Raises AdapterError.
        """
        self._require_open()
        return self._adapters.add(name, Path(path))

    def remove_adapter(self, name: str) -> None:
        """Forget all versions of an adapter, and give its memory back. Raises AdapterNotFound."""
        self._require_open()
        self._adapters.remove(name)

    @property
    def adapters(self) -> list[str]:
        return self._adapters.names()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        adapter: Adapter | Sequence[Adapter] = None,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        stop: Sequence[str] = (),
        task_id: int | None = None,
    ) -> list[Completion]:
        """Return the answer to each prompt, in their order. All of them run in the same batches.

        prompts: texts or token ids; one of either may stand by itself.
        adapter: a name, `name@version`, a mixture `{name: weight}`, None for the bare base; or one of these a prompt.
        sampling: for all, or one a prompt. stop: strings that end a text, of which they are no part.
        task_id: which task of adapters that have several.
        Raises ValueError for what cannot be answered, AdapterError for adapters that are unknown or cannot be mixed.
        """
        self._require_open()
        return self._answer(list_prompts(prompts), adapter, sampling, stop, task_id, special=True)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        adapter: Adapter | Sequence[Adapter] = None,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        stop: Sequence[str] = (),
        task_id: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """Return the answer to a chat, or to each of several, through the model's own chat template.

        messages: of each `role` and `content`, a text. chat_template_kwargs: what else the template is given.
        The rest is as in `generate`.
        """
        self._require_open()
        prompts = [self._render(chat, chat_template_kwargs or {}) for chat in list_chats(messages)]
        # The template has written the special tokens itself.
        return self._answer(prompts, adapter, sampling, stop, task_id, special=False)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        adapter: Adapter | Sequence[Adapter] = None,
        kind: PoolingKind = "mean",
        layer: int | None = None,
        task_id: int | None = None,
    ) -> list[list[float]]:
        """Return a vector for each prompt, in their order, of the hidden states of its tokens. Generates nothing.

        kind: their mean, or that of the last token. layer: the decoder layer whose output they are, with -1 for the
        last; None for what the head reads, behind the last norm. The rest is as in `generate`.
        """
        self._require_open()
        check_task_id(task_id)
        each = list_prompts(prompts)
        resolved = [self._adapters.resolve(one) for one in adapter_each(adapter, len(each))]
        running = [
            RunningPrompt(self._request(token_ids, who, SamplingParams(max_tokens=0), task_id, Pooling(kind, layer)))
            for token_ids, who in zip(self._encode(each, special=True), resolved, strict=True)
        ]
        self._run(running)
        return [prompt.vector for prompt in running]

    def close(self) -> None:
        """Give back what the engine has taken. A second call does nothing; all others raise ValueError from now on."""
        self._is_closed = True
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise ValueError("this LLM is closed")

    def _answer(
        self,
        prompts: Sequence[str | list[int]],
        adapter: Adapter | Sequence[Adapter],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        stop: Sequence[str],
        task_id: int | None,
        *,
        special: bool,
    ) -> list[Completion]:
        check_task_id(task_id)
        stops = list_stops(stop)
        resolved = [self._adapters.resolve(one) for one in adapter_each(adapter, len(prompts))]
        how = one_each("sampling", sampling or SamplingParams(), len(prompts), SamplingParams)
        token_ids = self._encode(prompts, special)
        rows = zip(prompts, token_ids, resolved, how, strict=True)
        sequences = [self._sequence(*row, stops, task_id) for row in rows]
        self._run(sequences)
        return [sequence.completion() for sequence in sequences]

    def _sequence(
        self,
        prompt: str | list[int],
        token_ids: list[int],
        resolved: Resolved,
        sampling: SamplingParams,
        stop: list[str],
        task_id: int | None,
    ) -> RunningSequence:
        check_sampling(sampling, resolved.vocabulary(self.engine.info.vocab_size))
        request = self._request(token_ids, resolved, sampling, task_id)
        decoder = SequenceDecoder(
            self._tokenizer.detokenizer(),
            StopStrings(stop),
            min_tokens=sampling.min_tokens,
            ends=() if sampling.ignore_eos else self.engine.info.eos_token_ids,
        )
        return RunningSequence(request, prompt if isinstance(prompt, str) else None, resolved.label, decoder)

    def _request(
        self,
        token_ids: list[int],
        resolved: Resolved,
        sampling: SamplingParams,
        task_id: int | None,
        pooling: Pooling | None = None,
    ) -> AddRequest:
        tasks = resolved.tasks(task_id)
        return AddRequest(
            request_id=f"offline-{next(self._ids)}",
            prompt_token_ids=token_ids,
            sampling=sampling,
            adapters=[WeightedAdapter(digest, w, tasks.get(digest, 0)) for digest, w in resolved.weights().items()],
            pooling=pooling,
        )

    def _run(self, sequences: Sequence[Running]) -> None:
        """Run all to their ends. Whatever is raised, none is left in the engine."""
        running = {sequence.request.request_id: sequence for sequence in sequences}
        try:
            for sequence in sequences:
                self.engine.add_request(sequence.request)
            while running:
                for output in self.engine.step():
                    if running[output.request_id].push(output):
                        self.engine.abort(output.request_id)  # it knows of no stop strings
                        del running[output.request_id]
        finally:
            for request_id in running:
                self.engine.abort(request_id)

    def _encode(self, prompts: Sequence[str | list[int]], special: bool) -> list[list[int]]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(self._wait_for(self._tokenizer.encode_all(texts, special)) if texts else ())
        return [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]

    def _render(self, messages: Any, arguments: Mapping[str, Any]) -> str:
        return self._wait_for(
            self._tokenizer.require_chat_template().render(
                messages, add_generation_prompt=True, continue_final_message=False, arguments=arguments
            )
        )

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the tokenizer's work on a thread of its own: the caller's may have an event loop, as in a notebook.

        Raises ValueError with what was wrong with a text.
        """
        try:
            return self._thread.submit(asyncio.run, work).result()
        except ApiError as error:
            raise ValueError(error.body.message) from None
