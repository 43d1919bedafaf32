"""What is noted of one request while it runs: numbers, names and times. Never a prompt, an answer or a key.

Nothing is noted, and nothing takes time, where neither logs nor traces are asked for.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from ...wire.messages import SamplingParams, SequenceOutput
from ..http.leaving import CLIENT_GONE
from ..http.protocol import CONNECTION, REFUSED

RECORD = "peftserve.record"  # in the ASGI scope: a `RequestRecord`, where requests are watched


@dataclass(slots=True)
class SequenceRecord:
    """What one sequence did. begun: when it was submitted, of time.perf_counter(), as first and last.

    first, last: when its first and its last tokens came. queue_seconds, load_seconds, prefill_seconds: as the engine
    says.
    """

    begun: float
    tokens: int = 0
    cached_tokens: int = 0
    first: float | None = None
    last: float | None = None
    queue_seconds: float | None = None
    load_seconds: float = 0.0
    prefill_seconds: float | None = None
    finish_reason: str | None = None

    def observe(self, output: SequenceOutput, finish_reason: str | None) -> None:
        """Note an output of a step. finish_reason: the client's, which knows of stop strings."""
        now = time.perf_counter()
        if output.queue_seconds is not None:
            self.queue_seconds = output.queue_seconds
            self.load_seconds = output.load_seconds or 0.0
            self.prefill_seconds = output.prefill_seconds
            self.cached_tokens = output.cached_tokens or 0
        if output.token_ids:
            self.tokens += len(output.token_ids)
            self.first = now if self.first is None else self.first
        self.last = now
        self.finish_reason = finish_reason


@dataclass(slots=True)
class RequestRecord:
    """What one request did. scope: its own, with its headers. begun: of time.perf_counter().

    sampling, model, samples, prompt_tokens: of what it asks the model, if anything. status: 0 before the answer.
    complete: whether all of the answer went out. trace_id: set where it is traced.
    """

    scope: Scope
    method: str
    path: str
    begun: float = field(default_factory=time.perf_counter)
    began: float = field(default_factory=time.time)
    seconds: float = 0.0
    status: int = 0
    sent: int = 0
    complete: bool = False
    adapter: str = ""
    route: str = ""
    is_stream: bool = False
    model: str | None = None
    sampling: SamplingParams | None = None
    samples: int = 1
    prompt_tokens: int = 0
    num_sequences: int = 0
    sequences: list[SequenceRecord] = field(default_factory=list)
    trace_id: str = ""

    def ask(self, model: str | None, sampling: SamplingParams, prompt_tokens: int, samples: int) -> None:
        """Note what the model is asked. model: as the client named it. sampling: of the first prompt."""
        self.model, self.sampling, self.samples = model, sampling, samples
        self.prompt_tokens += prompt_tokens

    def sequence(self) -> SequenceRecord:
        """Return the record of one more sequence, which begins now."""
        self.num_sequences += 1
        record = SequenceRecord(time.perf_counter())
        self.sequences.append(record)
        return record

    def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Note the beginning of the answer."""
        self.status = status
        for name, value in headers:
            if name == b"x-peftserve-adapter":
                self.adapter = value.decode("latin-1")
            elif name == b"x-peftserve-route":
                self.route = value.decode("latin-1")
            elif name == b"content-type":
                self.is_stream = value.startswith(b"text/event-stream")

    def end(self) -> None:
        """Note the end, and what became of an answer that has not gone out whole."""
        self.seconds = time.perf_counter() - self.begun
        connection: Any = self.scope.get(CONNECTION)
        refusal = self.scope.get(REFUSED)
        if refusal is not None and refusal.error is not None:
            self.status = refusal.error.status_code
        elif connection is not None and connection.is_lost:
            self.status = CLIENT_GONE
        elif not self.complete and self.status == 0:
            self.status = 500

    @property
    def tokens(self) -> int:
        return sum(sequence.tokens for sequence in self.sequences)

    @property
    def cached_tokens(self) -> int:
        """Return the prompt's tokens that the prefix cache had; a prompt counts once, by its first sample."""
        return sum(sequence.cached_tokens for sequence in self.sequences[:: self.samples])

    @property
    def first_token_seconds(self) -> float | None:
        """Return the seconds from the request's beginning to its first token; None without one."""
        firsts = [sequence.first for sequence in self.sequences if sequence.first is not None]
        return min(firsts) - self.begun if firsts else None

    @property
    def queue_seconds(self) -> float | None:
        """Return the longest time of a sequence in the engine's queue, with that for its adapters."""
        return max((s.queue_seconds for s in self.sequences if s.queue_seconds is not None), default=None)

    @property
    def load_seconds(self) -> float:
        """Return the longest time for which a sequence waited for its adapters."""
        return max((sequence.load_seconds for sequence in self.sequences), default=0.0)
