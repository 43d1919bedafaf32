"""The messages between the API process and the engine process, as msgspec structs. Never pickle.

Commands go to the engine, events come back. A call carries a `call_id` that its `Reply` repeats.
"""

from typing import Literal

import msgspec

from peftserve.adapters.facts import AdapterFacts

from ..added_tokens import AddedToken
from .statistics import EngineStats as EngineStats


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence is sampled. Defaults are OpenAI's. The engine relies on ranges that its callers have checked.

    max_tokens: most tokens to generate; 0 runs the prompt only, for prompt_logprobs or for its pooled hidden states.
    temperature: 0 is greedy. top_k: 0 is off. top_p, min_p: 1 and 0 are off.
    logit_bias: token id to an addend of its logit.
    seed: the same seed gives the same tokens whatever else runs; None draws one.
    stop_token_ids: end the sequence; the id itself is part of `token_ids` of the last output.
    min_tokens: no end of sequence or stop token before so many tokens.
    logprobs: number of most likely alternatives to report for each token; None reports nothing, 0 the token only.
    prompt_logprobs: the same for each prompt token (OpenAI's echo).
    grammar: what the output must be, in llguidance's own text (`LLMatcher.grammar_from`); None: anything.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop_token_ids: list[int] = []
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None


class WeightedAdapter(msgspec.Struct, frozen=True):
    """One adapter of a request, by the digest of its files, with its weight in the mixture (1 when alone).

    task: which of its tasks, for the methods that have several; 0 for all others.
    """

    digest: str
    weight: float = 1.0
    task: int = 0

    @property
    def key(self) -> str:
        """Return the key of what it compiles to: each task of an adapter is one adapter to the engine."""
        return f"{self.digest}:{self.task}" if self.task else self.digest


AdapterLevel = Literal["device", "host"]
PoolingKind = Literal["mean", "last"]


class Pooling(msgspec.Struct, frozen=True):
    """One vector for a prompt, of the hidden states of its tokens.

    kind: their mean, or that of the last token. layer: number of the decoder layer whose output they are, with -1 for
    the last; None for what the head reads, behind the last norm.
    """

    kind: PoolingKind = "mean"
    layer: int | None = None


# Commands: API to engine


class AddRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One sequence. n and best_of are several of these.

    adapters: empty for the bare base. salt: separates the prefix caches of tenants. pooling: the vector of its prompt
    that comes with the first output, if any; with max_tokens=0 that is all that it asks for. eos_token_ids: what ends
    it, in place of the model's own, where its adapter brings others. added_tokens: those of its adapter, over which its
    grammar is; empty without a grammar.
    tenant: a stable name of who asks; the empty one is a tenant like any other. weight: its share of the engine while
    others wait too, over 0; that of its newest request holds. priority: of one tenant's, those of a lower number begin
    first; between tenants it says nothing, so that nobody takes another's share by it.
    queue_timeout: most seconds that it may wait before it begins; None for any number. One that has waited longer ends
    with an error of the kind `QueueTimeout`, and is never begun.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    adapters: list[WeightedAdapter] = []
    salt: str = ""
    pooling: Pooling | None = None
    eos_token_ids: list[int] | None = None
    added_tokens: tuple[AddedToken, ...] = ()
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    queue_timeout: float | None = None


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    """Forget a sequence and free its pages; no output follows. Unknown ids are ignored."""

    request_id: str


class InspectAdapter(msgspec.Struct, frozen=True, tag=True):
    """Compile the checkpoint in folder `path` (adapter_config.json and adapter_model.safetensors) against the base.

    The reply carries its facts or says what is wrong with it. Nothing is admitted to the device yet. tenant: whose it
    is; inspections for one tenant never wait behind all of another's.
    """

    call_id: int
    digest: str
    path: str
    tenant: str = ""


class ReleaseAdapter(msgspec.Struct, frozen=True, tag=True):
    """Drop an adapter from device and host memory once no request uses it; the reply comes when that is done."""

    call_id: int
    digest: str


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Bring an adapter to the device, ahead of use. The reply says where it is then; others may need its room later."""

    call_id: int
    digest: str


class PinAdapters(msgspec.Struct, frozen=True, tag=True):
    """Load these adapters and never evict them, and no others from now on. New ones are taken in their order.

    A released one is no longer pinned. The reply comes when it is known that they fit the bound, or says which bound
    they are over; those that are within it are pinned either way.
    """

    call_id: int
    digests: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the step loop and exit. Sent when the API has drained."""


Call = InspectAdapter | ReleaseAdapter | LoadAdapter | PinAdapters
Command = AddRequest | AbortRequest | Call | Shutdown

# Events: engine to API


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first event: the model is loaded and the engine takes requests.

    tokenizer: the text of a `tokenizer.json` exactly as transformers resolves it, or None if there is none.
    chat_template: Jinja source, or None. special_tokens: name (`bos_token`) to text, for the template.
    eos_token_ids: end a sequence unless `ignore_eos`.
    fingerprint: of the checkpoint, by part: the same for the same base wherever it lies, another for another base.
    cuda_graphs: recorded at start, of decode steps; 0 where a GPU runs without, None where there is no GPU.
    hidden_size: width of pooled hidden states; 0 where those behind the last norm cannot be had. num_layers: whose
    outputs can be pooled; 0 where none can.
    sampling_defaults: fields of SamplingParams to what the model wants where a request leaves them out.
    """

    model_name: str
    architecture: str
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int]
    num_kv_pages: int
    page_size: int
    max_running: int
    max_loras: int
    max_adapter_rank: int
    tokenizer: str | None
    chat_template: str | None
    special_tokens: dict[str, str]
    pid: int
    fingerprint: dict[str, str] = {}
    cuda_graphs: int | None = None
    hidden_size: int = 0
    num_layers: int = 0
    sampling_defaults: dict[str, int | float] = {}


class Logprob(msgspec.Struct, frozen=True):
    """The logprob of one token. rank: 1 for the most likely token of the vocabulary."""

    token_id: int
    logprob: float
    rank: int


class TokenLogprobs(msgspec.Struct, frozen=True):
    """The chosen token and the most likely alternatives, best first, in the model's raw distribution."""

    chosen: Logprob
    top: list[Logprob] = []


FinishReason = Literal["stop", "length"]


class SequenceOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One sequence's output of one step. The last one has a finish reason or `error`. None is not sent.

    stop_token_id: the end-of-sequence or stop token that ended it, which is the last of token_ids.
    prompt_logprobs: once, with the first output: one entry per prompt token, the first is None.
    pooled: the vector that the request asks for, as float32 in little-endian; with the first output.
    cached_tokens: prompt tokens taken from the prefix cache; with the first output.
    queue_seconds: from arrival in the engine to its first step; with the first output.
    load_seconds: the part of them in which it waited for its adapters to come to the device; None for none.
    prefill_seconds: from its first step to its first token, or to the end of a prompt that is only run; with the first
    output.
    error: the sequence could not be served after all; what went wrong, for the client.
    error_kind: name of a class of adapters/errors.py or wire/faults.py, where it is not the request's fault.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    pooled: bytes | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    cached_tokens: int | None = None
    queue_seconds: float | None = None
    load_seconds: float | None = None
    prefill_seconds: float | None = None
    error: str | None = None
    error_kind: str | None = None


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """All outputs of one step."""

    outputs: list[SequenceOutput]


class Reply(msgspec.Struct, frozen=True, tag=True):
    """The answer to the call of the same `call_id`.

    facts: of an inspected adapter. error_kind: name of a class of adapters/errors.py or wire/faults.py; with `error`,
    None on success.
    level: of a loaded adapter; `host` where no slot became free in time.
    """

    call_id: int
    facts: AdapterFacts | None = None
    error_kind: str | None = None
    error: str | None = None
    error_param: str | None = None
    level: AdapterLevel | None = None


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The engine's loop turns, and its statistics are as sent last. Twice a second, or behind a longer step."""


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot start or cannot go on; it exits after this. The message is for the operator."""

    message: str


Event = ModelInfo | Outputs | Reply | EngineStats | Beat | EngineFailed
