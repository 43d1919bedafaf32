"""The engine: takes requests, runs steps, and returns the tokens of each step.

One thread calls everything here. Nothing in `step` waits for a client, a disk or an adapter.
"""

import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch

from peftserve.adapters.errors import AdapterDamaged, AdapterError
from peftserve.adapters.facts import AdapterFacts
from peftserve.kernels.attention.layout import Limits
from peftserve.kernels.device.step_memory import StepMemory

from ..config import EngineConfig
from ..wire.messages import AdapterLevel, AddRequest, EngineStats, ModelInfo, SequenceOutput
from .adapters.service import AdapterService
from .assembly import lay_out_products, make_runner
from .memory import kv_pages
from .memory_report import describe_memory
from .model.fingerprint import fingerprint
from .model.loading import load_model, vocabulary_size
from .model.tokenizer_facts import eos_token_ids, tokenizer_facts
from .pipeline import Pipeline
from .requests import check_prompt, count_adapters, failed, make_sequence, refusal
from .sampling import Sampler
from .scheduling.page_pool import PagePool
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import Lease, Sequence
from .staging import is_host

logger = logging.getLogger(__name__)

T = TypeVar("T")

SPARE_FIELDS = 64  # of four bytes, for each sequence of a step: what its sampler may tell the device
IDLE_SECONDS = 0.0005  # what an empty step waits for an adapter's load, so that a caller's loop does not spin


class Engine:
    """The model of a configuration with its KV cache, its adapters and its scheduler.

    To make one loads the model. Raises UnservableModel if it cannot be served right.
    """

    def __init__(self, config: EngineConfig) -> None:
        torch.set_num_threads(config.num_threads or torch.get_num_threads())  # this thread's, whatever others set
        self._config = config
        loaded = load_model(config)
        self._model = loaded.model
        self._hidden = loaded.hidden
        products = lay_out_products(loaded, config.wide_columns)
        most_rows = max(config.max_batch_tokens, len(loaded.trace.token_ids))  # which the check at start runs
        memory = StepMemory(loaded.device, spare=config.max_running * SPARE_FIELDS)
        self.adapters = AdapterService(config, loaded, most_rows, memory, products.wide)
        num_pages = kv_pages(
            config.kv_cache_tokens,
            loaded.attention.layers,
            page_size=config.page_size,
            max_tokens=config.max_running * loaded.max_model_len,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        self._max_model_len = min(loaded.max_model_len, num_pages * config.page_size)
        limits = Limits(most_rows, config.max_running, self._max_model_len)
        self._runner = make_runner(config, loaded, products.fused, self.adapters.attachments, num_pages, limits, memory)
        self._scheduler = Scheduler(
            PagePool(num_pages),
            self.adapters.residency,
            page_size=config.page_size,
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            prefix_caching=config.prefix_caching,
            refuse=self._refuse,
        )
        self.memory = describe_memory(config, loaded, self.adapters, packed=products.packed, num_pages=num_pages)
        logger.info("%s", self.memory)
        facts = tokenizer_facts(config.model, config.trust_remote_code)
        self.info = self._describe(num_pages, *facts)
        sampler = Sampler(loaded.trace.logits.shape[-1], loaded.device, config.max_running)
        sampler.warm_up(loaded.trace.logits.dtype)
        overlapped = loaded.device.type == "cuda" if config.async_scheduling is None else config.async_scheduling
        self._pipeline = Pipeline(self._runner, sampler, self._scheduler, self._end, overlapped=overlapped)
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = count()
        self._steps = 0

    def _describe(
        self, num_pages: int, tokenizer: str | None, template: str | None, special: dict[str, str], eos: int | None
    ) -> ModelInfo:
        config, model = self._config, self._model
        return ModelInfo(
            model_name=Path(config.model).name if Path(config.model).is_dir() else config.model,
            architecture=type(model).__name__,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            vocab_size=vocabulary_size(model),
            max_model_len=self._max_model_len,
            eos_token_ids=sorted(eos_token_ids(model, eos)),
            num_kv_pages=num_pages,
            page_size=config.page_size,
            max_running=config.max_running,
            max_loras=config.max_loras,
            max_adapter_rank=config.max_lora_rank,
            tokenizer=tokenizer,
            chat_template=template,
            special_tokens=special,
            pid=os.getpid(),
            fingerprint=fingerprint(config.model),
            cuda_graphs=None if is_host(model.device) else self._runner.num_graphs,
            hidden_size=self._hidden.width,
            num_layers=self._hidden.num_layers,
        )

    # Requests

    def add_request(self, request: AddRequest) -> None:
        """Queue a request.

        Raises ValueError if it could never be served: no prompt, too long, unknown tokens, too many adapters, pooled
        hidden states that the model does not have.
        """
        check_prompt(request, self.info.vocab_size, self._max_model_len)
        if request.pooling is not None:
            self._hidden.check(request.pooling.layer)
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is in use")
        sequence = make_sequence(
            request, arrival=next(self._arrivals), eos_token_ids=self.info.eos_token_ids, max_len=self._max_model_len
        )
        if len(sequence.adapters) > self._config.max_loras:
            raise ValueError(f"a mixture of {len(sequence.adapters)} adapters needs --max-loras of at least as many")
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Forget a sequence and free its pages. Unknown ids are ignored: it may just have ended."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)

    def has_work(self) -> bool:
        return bool(self._sequences or self._pipeline)

    # Steps

    def step(self) -> list[SequenceOutput]:
        """Let the device run a step, and return the outputs that have become known.

        These are none while everything waits for adapters, or for the first step's tokens.
        """
        failures = self._fail_unloadable()
        batch = self._scheduler.schedule()
        failures += self._fail_refused()
        if not batch and not self._pipeline:
            time.sleep(IDLE_SECONDS if self.has_work() else 0)
            return failures
        self._steps += bool(batch)
        return failures + self._pipeline.advance(batch)

    def _end(self, sequence: Sequence) -> None:
        self.abort(sequence.request_id)

    def _fail_unloadable(self) -> list[SequenceOutput]:
        self.adapters.poll(self._uses)
        outputs = []
        for digests, error in self.adapters.take_failures().items():
            if not isinstance(error, AdapterError):
                logger.error("An adapter could not be loaded", exc_info=error)
                error = AdapterDamaged("its files could not be read now; try again, or upload the same files again")
            kind = type(error).__name__ if isinstance(error, AdapterDamaged) else None
            for sequence in [s for s in self._sequences.values() if {p.key for p in s.adapters}.issuperset(digests)]:
                outputs.append(failed(sequence, f"the adapter could not be loaded: {error.message}", kind))
                self.abort(sequence.request_id)
        return outputs

    def _fail_refused(self) -> list[SequenceOutput]:
        refused, self._scheduler.refused = self._scheduler.refused, []
        for sequence, _ in refused:
            self.abort(sequence.request_id)
        return [failed(sequence, why) for sequence, why in refused]

    def _refuse(self, sequence: Sequence, lease: Lease) -> str | None:
        return refusal(sequence, lease, self.info.vocab_size, self._max_model_len)

    # Adapters

    def inspect_adapter(self, digest: str, folder: Path) -> AdapterFacts:
        """Compile a checkpoint and keep it at hand under `digest`. Raises AdapterError."""
        return self.start_inspection(digest, folder).result()

    def start_inspection(self, digest: str, folder: Path) -> Future[AdapterFacts]:
        return self.adapters.inspect(digest, folder)

    def release_adapter(self, digest: str) -> None:
        """Give back an adapter's memory. Raises ValueError while a request uses it."""
        if self._uses(digest):
            raise ValueError("a request uses this adapter")
        self._wait_for(self.start_release(digest))

    def start_release(self, digest: str) -> Future[None]:
        """Begin to give back an adapter's memory, as soon as no request uses it: call `poll` or `step` until then."""
        return self.adapters.release(digest)

    def load_adapter(self, digest: str) -> AdapterLevel:
        """Bring an adapter to the device, ahead of use. Returns where it is then. Raises AdapterError."""
        return self._wait_for(self.start_load(digest))

    def start_load(self, digest: str) -> Future[AdapterLevel]:
        """Begin to bring an adapter to the device: call `poll` or `step` until that is done."""
        return self.adapters.ahead.load(digest)

    def pin_adapters(self, digests: Iterable[str]) -> None:
        """Keep these adapters, and no others, on the device. Raises AdapterError; see `AheadOfUse.pin`."""
        self._wait_for(self.start_pinning(digests))

    def start_pinning(self, digests: Iterable[str]) -> Future[None]:
        """Begin to pin adapters: call `poll` or `step` until that is done."""
        return self.adapters.ahead.pin(digests)

    def poll(self) -> None:
        """Take in loads and releases that have finished: what an idle engine does instead of steps."""
        self.adapters.poll(self._uses)
        self.adapters.take_failures()  # no sequence waits for what could not be loaded; whoever asks next tries again

    def _wait_for(self, work: Future[T]) -> T:
        while not work.done():
            self.adapters.poll(self._uses)
            time.sleep(IDLE_SECONDS)
        return work.result()

    def _uses(self, digest: str) -> bool:
        return any(adapter.digest == digest for sequence in self._sequences.values() for adapter in sequence.adapters)

    # Statistics

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        waiting = [*scheduler.waiting, *scheduler.preempted]
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(waiting),
            kv_pages_used=scheduler.pool.num_used,
            kv_pages_total=scheduler.pool.num_pages,
            prefix_query_tokens=scheduler.prefix_query_tokens,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            preemptions=scheduler.num_preemptions,
            steps=self._steps,
            running_adapters=count_adapters(scheduler.running),
            waiting_adapters=count_adapters(waiting),
            **self.adapters.stats(),
        )

    def check_integrity(self) -> None:
        """Raises AssertionError where the books of pages, slots and ranges do not agree."""
        self._scheduler.check_integrity()
        self.adapters.check_integrity()

    def close(self) -> None:
        self.adapters.close()
