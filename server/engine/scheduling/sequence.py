"""One sequence: the request, the tokens so far, and how much of them is in the KV cache."""

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ...wire.messages import Pooling, SamplingParams, TokenLogprobs, WeightedAdapter

if TYPE_CHECKING:
    import torch

    from ..grammar.matcher import Matcher

VIRTUAL = -1  # stands for a token of a prefix, which has keys and values and no id
UNKNOWN = -2  # stands for a token that a step is sampling, until it reaches the host
NEVER = 1 << 62


class Payer(NamedTuple):
    """Who is charged for a sequence's tokens. tenant: who asks. mixture: the keys of its adapters; none of the base."""

    tenant: str
    mixture: tuple[str, ...]


@dataclass(eq=False, slots=True)
class Sequence:
    """A sequence's state. Tokens [0, num_computed) have keys and values in `pages`; the rest is still to be run.

    tokens: the adapter's virtual tokens, the prompt, then the output; `prompt` and `output` are the two by themselves.
        The last one is UNKNOWN while a step is sampling it; everything else is known.
    max_len: most tokens, whatever the request asks for.
    seed: the request's, or one that the engine drew.
    lease: the adapters' slots; set by the scheduler when it reserves them, None before and after.
    pages, page_keys: pages held, in order, and the prefix-cache keys of the full ones; set by the scheduler.
    num_published: first pages that others can find; counted by the scheduler. num_saved: first tokens behind which the
        last snapshot of its state was made or found.
    prompt_logprobs: of the prompt's tokens so far, if the request wants them; the first token has none.
    priority: of a tenant's waiting sequences, those of a lower one begin first.
    tenant, weight: who asks, and its share of the engine. queue_timeout: most seconds that it may wait.
    pooling: the vector of the prompt that the request wants, if any. pooled: what the tokens run so far come to,
        (width,) float32 on the device; set when a step is launched. pooled_bytes: the whole, on the host; set when the
        step has run that has the prompt's last token.
    num_cached: prompt tokens found in the prefix cache at the first admission.
    arrived: when it was made, of time.monotonic(). queue_seconds: from then to its first step, at the time `begun`.
        load_seconds: the part of them in which its adapters were not there yet. All set by the scheduler.
    num_virtual: tokens before the prompt whose keys and values the adapter brings. active_from: the first of `tokens`
        that the adapters work on; past all tokens if none. Both are set by `begin`.
    seat: number by which others keep what is its own while it runs, of which no other that runs has it; -1 while it
        does not run. Set by the scheduler.
    blocked_steps: steps in which the device had no room for its adapters; counted by the scheduler.
    turn_from: how many tokens it had when it last took a seat. turns_lost: how often its seat and its pages were taken
        back for other tenants. Both are set by the scheduler.
    form: its grammar, which has followed its output; None: anything. Set by the engine before it is queued.
    is_over: it has ended or was aborted; steps that still run it say nothing. Set by the scheduler.

    Worked out once, since each step needs them:

    payer: its tenant and its adapters, between which the scheduler is fair.
    latest_start: when it must have begun, of time.monotonic().
    cost: what a token of it takes of a step's budget: one for each of its adapters, and one without any.
    end_token_ids: tokens that end it: its stop ids, and the model's ends of sequence unless it ignores them.
    limit: most tokens that it may have. Grows when `begin` puts tokens before the prompt.
    """

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    adapters: tuple[WeightedAdapter, ...]
    salt: str
    seed: int
    eos_token_ids: frozenset[int]
    arrival: int = 0
    max_len: int = 1 << 62
    pooling: Pooling | None = None
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    queue_timeout: float | None = None
    tokens: list[int] = field(init=False)
    output: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])
    pooled: "torch.Tensor | None" = None
    pooled_bytes: bytes | None = None
    num_computed: int = 0
    num_cached: int | None = None
    pages: list[int] = field(default_factory=list)
    page_keys: list[bytes] = field(default_factory=list)
    num_published: int = 0
    num_saved: int = 0
    seat: int = -1
    lease: "Lease | None" = None
    arrived: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    queue_seconds: float | None = None
    load_seconds: float = 0.0
    num_virtual: int = 0
    active_from: int = 0
    blocked_steps: int = 0
    turn_from: int = 0
    turns_lost: int = 0
    is_over: bool = False
    form: "Matcher | None" = None
    payer: Payer = field(init=False)
    latest_start: float = field(init=False)
    cost: int = field(init=False)
    end_token_ids: frozenset[int] = field(init=False)
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.payer = Payer(self.tenant, tuple(adapter.key for adapter in self.adapters))
        self.latest_start = math.inf if self.queue_timeout is None else self.arrived + self.queue_timeout
        self.cost = max(len(self.adapters), 1)
        ends = frozenset(self.sampling.stop_token_ids)
        self.end_token_ids = ends if self.sampling.ignore_eos else ends | self.eos_token_ids
        self.limit = self._limit()

    def begin(self, lease: "Lease") -> None:
        """Put the adapters' virtual tokens ahead of the prompt, and find where they begin to work. Idempotent."""
        if lease.prefix_length and not self.num_virtual:
            self.num_virtual = lease.prefix_length
            self.tokens[:0] = [VIRTUAL] * lease.prefix_length
            self.limit = self._limit()
        if lease.invocation and not self.active_from:
            self.active_from = self.num_virtual + _last_occurrence(lease.invocation, self.prompt)

    @property
    def num_prompt(self) -> int:
        """Return the number of virtual tokens and prompt tokens."""
        return self.num_virtual + len(self.prompt)

    def expect(self) -> None:
        """Note that a step is sampling the next token."""
        self.tokens.append(UNKNOWN)

    def append(self, token: int) -> None:
        """Record the token that was expected."""
        self.output.append(token)
        self.tokens[-1] = token

    @property
    def num_known(self) -> int:
        """Return how many tokens have ids that the host knows."""
        return len(self.tokens) - (self.tokens[-1] == UNKNOWN)

    @property
    def awaits_its_end(self) -> bool:
        """Return whether the token that a step is sampling is its last one, whichever it is."""
        return self.tokens[-1] == UNKNOWN and self.is_full

    @property
    def is_full(self) -> bool:
        """Return whether it has as many tokens as it may."""
        return len(self.tokens) >= self.limit

    def _limit(self) -> int:
        return min(self.num_prompt + self.sampling.max_tokens, self.max_len)

    @property
    def has_begun(self) -> bool:
        """Return whether a step has ever run any of it."""
        return self.queue_seconds is not None

    @property
    def num_remaining(self) -> int:
        """Return how many tokens have no keys and values yet: 1 in decode."""
        return len(self.tokens) - self.num_computed

    @property
    def slots(self) -> tuple[int, ...]:
        """Return the slots of its adapters on the device; none before it has a lease."""
        return () if self.lease is None else self.lease.slots

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.sampling.prompt_logprobs is not None

    @property
    def wants_all_of_prompt(self) -> bool:
        """Return whether each token of the prompt must be run for what the request asks, known prefix or not."""
        return self.wants_prompt_logprobs or (self.pooling is not None and self.pooling.kind == "mean")


class Held(Protocol):
    """What a lease holds of an adapter: one load of it, which another load of the same adapter is not.

    holders: leases on it. attached: when it was on the device, of time.monotonic(); 0 before.
    """

    key: str
    holders: int
    attached: float


@dataclass(eq=False, slots=True)
class Lease:
    """Slots reserved for a sequence's adapters, one for each of them.

    prefix_length: tokens whose keys and values the adapter brings. invocation: token ids, from whose last occurrence
    in the prompt on the adapter works; empty: everywhere. vocabularies: of each adapter; 0 for the base's. residents:
    what it holds, which is the residency's.
    """

    digests: tuple[str, ...]
    slots: tuple[int, ...]
    weights: tuple[float, ...]
    prefix_length: int = 0
    invocation: tuple[int, ...] = ()
    vocabularies: tuple[int, ...] = ()
    residents: tuple[Held, ...] = ()


def _last_occurrence(wanted: tuple[int, ...], tokens: list[int]) -> int:
    """Return where `wanted` last begins in `tokens`; NEVER if it does not."""
    starts = range(len(tokens) - len(wanted), -1, -1)
    return next((i for i in starts if tuple(tokens[i : i + len(wanted)]) == wanted), NEVER)
