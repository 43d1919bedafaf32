"""Merges of the server's adapters: what is wrong is said at once, and the rest is a job in a process of its own.

The adapters that go in are held from the look-up to the job's end, so that a deletion meanwhile takes no file away.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from peftserve.adapters.errors import (
    AdapterConflict,
    AdapterDamaged,
    AdapterNotFound,
    AdapterTooLarge,
    InvalidAdapter,
    NameTaken,
    error_of,
)
from peftserve.adapters.merging.kinds import Options, check_options
from peftserve.adapters.merging.messages import MODULE, MergeDone, MergeFailed, MergeMessage, MergeOrder, MergeProgress
from peftserve.adapters.merging.plan import MergePlan, MergeSource, plan_merge
from peftserve.adapters.names import parse_reference
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.resolved import Member, Resolved

from .http.errors import ApiError
from .http.threads import entered
from .jobs.child import run_child
from .jobs.jobs import Job, Ticket
from .services import Services

KIND = "merge"
Weighted = Sequence[tuple[str, float]]
Answer = Callable[[AdapterRecord], Awaitable[Any]]

_decode = msgspec.json.Decoder(MergeMessage).decode


async def start_merge(services: Services, name: str, weighted: Weighted, options: Options, answer: Answer) -> Job:
    """Check a merge and put it in the queue. answer: makes the job's result of the new version.

    Raises AdapterNotFound, InvalidAdapter, UnsupportedAdapter, AdapterTooLarge, AdapterDamaged, ApiError.
    """
    check_options(options, [weight for _, weight in weighted])
    _check_name(services, name)
    # Look-up and lease are one turn of the loop.
    records = [_find(services, text) for text, _ in weighted]
    members = [Member(record.ref, weight) for record, (_, weight) in zip(records, weighted, strict=True)]
    held = Resolved(tuple(members), name, name)
    leases = services.adapters.leases
    leases.acquire(held)
    try:
        sources = [_source(services, member) for member in members]
        plan = await asyncio.to_thread(plan_merge, sources, options)
        _check_size(services, plan)
        merge = _Merge(services, name, MergeOrder(sources, options, ""), _origin(members, options), answer)
        return services.owned.jobs.submit(KIND, merge.run, lambda: leases.release(held))
    except BaseException:
        leases.release(held)
        raise


class _Merge:
    """The work of one job."""

    def __init__(
        self,
        services: Services,
        name: str,
        order: MergeOrder,
        origin: Mapping[str, Any],
        answer: Answer,
    ) -> None:
        self._services = services
        self._name = name
        self._order = order
        self._origin = origin
        self._answer = answer

    async def run(self, ticket: Ticket) -> Any:
        """Merge in another process, and register what it writes. Raises AdapterError, EngineDead, OSError."""
        owned = self._services.owned
        async with entered(owned.store.stage, self._services.config.upload_limit) as staged:
            await self._merge(ticket, str(staged.path))
            await asyncio.to_thread(staged.adopt)
            ticket.commit()
            record = await owned.library.add(staged, self._name, origin=self._origin)
        return await self._answer(record)

    async def _merge(self, ticket: Ticket, folder: str) -> None:
        ends: list[MergeDone | MergeFailed] = []

        def hear(line: bytes) -> None:
            message = _decode(line)
            if isinstance(message, MergeProgress):
                ticket.progress(message.done / message.total)
            else:
                ends.append(message)

        order = msgspec.structs.replace(self._order, folder=folder)
        status = await run_child(MODULE, msgspec.json.encode(order), hear)
        if not ends and status < 0:
            message = (
                "The process of the merge was killed, perhaps for want of memory; merge fewer or smaller adapters."
            )
            raise ApiError(500, message, code="internal_error")
        if not ends:
            raise RuntimeError(f"the process of a merge has ended with status {status}; its own output has the cause")
        if isinstance(end := ends[0], MergeFailed):
            raise error_of(end.kind, end.message, end.param)


def _origin(members: Sequence[Member], options: Options) -> dict[str, Any]:
    """Return where the result comes from, as its card shows it."""
    sources = [{"name": str(ref), "digest": ref.digest, "weight": weight} for ref, weight in members]
    return {"kind": KIND, "sources": sources, **msgspec.to_builtins(options)}


def _check_name(services: Services, name: str) -> None:
    """Raise InvalidAdapter for a name that the result cannot have; NameTaken, AdapterForbidden for one of another."""
    try:
        services.owned.library.check_name(name)
    except NameTaken:
        raise
    except AdapterConflict as error:
        raise InvalidAdapter(error.message, param="name") from None


def _find(services: Services, text: str) -> AdapterRecord:
    """Look up a name or `name@version`. Raises AdapterNotFound, InvalidAdapter, AdapterDamaged."""
    reference = parse_reference(text)
    if text in services.base_ids:
        raise InvalidAdapter(f"{text!r} is the base, which is in every adapter already", param="adapters")
    record = None if reference is None else services.adapters.registry.find(*reference)
    if record is None:
        raise AdapterNotFound(f"there is no adapter {text[:140]!r}", param="adapters")
    if (what := services.owned.library.damaged.get(record.digest)) is not None:
        raise AdapterDamaged(f"{record.ref} cannot be merged: {what}; upload the same files again", param="adapters")
    return record


def _source(services: Services, member: Member) -> MergeSource:
    ref, weight = member
    return MergeSource(str(ref), str(services.owned.store.path(ref.digest)), weight)


def _check_size(services: Services, plan: MergePlan) -> None:
    """Raise AdapterTooLarge for a result that an upload could not be either."""
    largest = max(module.rank for module in plan.modules)
    if largest > (limit := services.model().max_adapter_rank):
        raise AdapterTooLarge(
            f"the merged adapter would have rank {largest}, over the server's limit of {limit}; the kinds that end in "
            "_svd take svd_rank",
            param="combination_type",
        )
    if plan.num_bytes > services.config.upload_limit:
        raise AdapterTooLarge(
            f"the merged adapter would have {plan.num_bytes} bytes, over the limit of {services.config.upload_limit}",
            param="adapters",
        )
