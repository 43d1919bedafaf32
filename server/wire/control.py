"""The messages between the primary API process and the others, its workers. Never pickle.

The primary has the state folder, the engine process and the routes that change adapters. A call carries a `call_id`
that its `Done` repeats; calls are answered in any order.
"""

import msgspec

Sample = tuple[str, dict[str, str], float]  # name, labels, value

# Primary to worker


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message.

    number: which of the processes this is; the primary is 0. config: a `ServerConfig` in JSON.
    port: the one that all listen on. folder: has the socket on which the primary answers.
    started: when the primary did, in seconds since 1970.
    """

    number: int
    config: str
    port: int
    folder: str
    started: int


class Serve(msgspec.Struct, frozen=True, tag=True):
    """Listen. `Done` follows when the worker does, which waits for the model."""

    call_id: int


class AwaitIdle(msgspec.Struct, frozen=True, tag=True):
    """Wait until no request of this process holds the adapter, whose rows are gone from the registry; then `Done`."""

    call_id: int
    digest: str


class GiveStats(msgspec.Struct, frozen=True, tag=True):
    """Answer with `WorkerStats`, at once."""

    call_id: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Take no new requests. `Done` follows when none runs."""

    call_id: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End what still runs with an error, then the connections and the process."""


Call = Serve | AwaitIdle | GiveStats | Drain
Order = Begin | Call | Stop

# Worker to primary


class WorkerStats(msgspec.Struct, frozen=True):
    """The statistics of one worker.

    leases: digest to the number of requests that hold it. names: (digest, name) of adapters that these requests use.
    samples: family of metrics to its samples: totals since the start of the process.
    """

    leases: dict[str, int] = {}
    names: list[tuple[str, str]] = []
    samples: dict[str, list[Sample]] = {}


class Done(msgspec.Struct, frozen=True):
    """The answer to a call. stats: where the call was `GiveStats`."""

    call_id: int
    stats: WorkerStats | None = None
