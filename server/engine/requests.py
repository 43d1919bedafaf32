"""Requests on their way to becoming sequences: checked, and refused where nothing could serve them."""

import math
import secrets
from collections.abc import Collection, Iterable

from peftserve.adapters.errors import AdapterError

from ..wire.faults import EngineFault, QueueTimeout
from ..wire.messages import AddRequest, SequenceOutput, WeightedAdapter
from .faults import SERVERS_FAULT
from .scheduling.sequence import Lease, Sequence


def check_request(request: AddRequest, vocabulary: int, max_len: int) -> None:
    """Raise ValueError for what could never be served: a prompt that is empty, too long, or with unknown tokens.

    vocabulary: of the base. max_len: most tokens of a sequence.
    """
    token_ids = request.prompt_token_ids
    if not 0 < request.weight < math.inf:
        raise ValueError(f"the weight of a request must be a number over 0, not {request.weight}")
    if not token_ids:
        raise ValueError("the prompt is empty; it must have at least one token")
    if len(token_ids) + min(request.sampling.max_tokens, 1) > max_len:
        raise ValueError(f"a prompt of {len(token_ids)} tokens does not fit the context of {max_len}")
    # Which tokens an adapter knows, if not the base's, it says when it is there.
    if min(token_ids) < 0 or (not request.adapters and max(token_ids) >= vocabulary):
        raise ValueError(f"the prompt holds a token id outside of the vocabulary of {vocabulary}")


def make_sequence(request: AddRequest, *, arrival: int, eos_token_ids: Collection[int], max_len: int) -> Sequence:
    """Return the sequence of a request. Without a seed of its own it gets one that is drawn here."""
    sampling = request.sampling
    return Sequence(
        request_id=request.request_id,
        prompt=request.prompt_token_ids,
        sampling=sampling,
        adapters=_merge_equal(request.adapters),
        salt=request.salt,
        seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
        eos_token_ids=frozenset(eos_token_ids if request.eos_token_ids is None else request.eos_token_ids),
        arrival=arrival,
        max_len=max_len,
        pooling=request.pooling,
        priority=request.priority,
        tenant=request.tenant,
        weight=request.weight,
        queue_timeout=request.queue_timeout,
    )


def refusal(sequence: Sequence, lease: Lease, vocabulary: int, max_len: int) -> str | None:
    """Return what is wrong with a request that only its loaded adapters can tell; None if nothing is.

    That is how many virtual tokens they bring, and which token ids they know.

    vocabulary, max_len: as in `check_request`.
    """
    prompt, brought = sequence.prompt, lease.prefix_length
    if brought and brought + len(prompt) + min(sequence.sampling.max_tokens, 1) > max_len:
        return (
            f"a prompt of {len(prompt)} tokens behind the {brought} that the adapter brings does not fit the "
            f"context of {max_len}"
        )
    known = max((own or vocabulary for own in lease.vocabularies), default=vocabulary)
    return f"the prompt holds a token id outside of the vocabulary of {known}" if max(prompt) >= known else None


def failed(sequence: Sequence, message: str, kind: str | None = None) -> SequenceOutput:
    """Return the last output of a sequence that could not be served. kind: as `SequenceOutput.error_kind`."""
    return SequenceOutput(request_id=sequence.request_id, token_ids=[], error=message, error_kind=kind)


def ended_by(request_id: str, fault: EngineFault) -> SequenceOutput:
    """Return the last output of a sequence that ends for what is not its request's fault."""
    return SequenceOutput(request_id=request_id, token_ids=[], error=fault.message, error_kind=type(fault).__name__)


def not_loaded(sequence: Sequence, error: AdapterError) -> SequenceOutput:
    """Return the last output of a sequence whose adapter could not be loaded."""
    kind = type(error).__name__ if isinstance(error, SERVERS_FAULT) else None
    return failed(sequence, f"the adapter could not be loaded: {error.message}", kind)


def timed_out(sequence: Sequence) -> SequenceOutput:
    """Return the last output of a sequence that has waited too long."""
    waited = sequence.queue_timeout or 0.0
    message = f"the request waited {waited:g} seconds for its turn, which is the limit; try again later"
    return ended_by(sequence.request_id, QueueTimeout(message))


def count_adapters(sequences: Iterable[Sequence]) -> dict[str, int]:
    """Return the number of sequences of each adapter, by digest."""
    counts: dict[str, int] = {}
    for sequence in sequences:
        for adapter in sequence.adapters:
            counts[adapter.digest] = counts.get(adapter.digest, 0) + 1
    return counts


def _merge_equal(adapters: Iterable[WeightedAdapter]) -> tuple[WeightedAdapter, ...]:
    """Return a mixture's adapters, those with the same files as one with the sum of the weights."""
    merged: dict[str, WeightedAdapter] = {}
    for adapter in adapters:
        weight = merged[adapter.key].weight if adapter.key in merged else 0.0
        merged[adapter.key] = WeightedAdapter(adapter.digest, weight + adapter.weight, adapter.task)
    return tuple(merged.values())
