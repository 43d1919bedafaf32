"""What the engine says of itself, a few times a second: one message, with a field for each number."""

import msgspec


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of the engine, sent at most a few times a second while it works and once when it goes idle.

    Counters are totals since the start. adapter_load_seconds: durations of loads since the last message.
    adapter_integrity_failures: files of adapters that were not what was stored, uploaded or compiled.
    damaged_adapters: digests of adapters whose uploaded files were found damaged since the last message.
    queue_timeouts, failed_steps, invalid_logits: sequences that ended for waiting too long, steps that failed, and
    sequences that ended for numbers that are none.
    pinned_adapters: digests of those that never leave the device, once they are there.
    running_adapters, waiting_adapters: digest to number of sequences.
    state_slots, state_snapshots: of a model that keeps state beside pages, slots that sequences hold, and copies behind
    known prefixes; None for one that keeps none.
    host_unchanged: host_adapters are those of the message before, and left out of this one.
    replicas: that take sequences, where there may be several engines; None where there is one. dealt: sequences with
    adapters that were dealt out to these, by the tier in which the replica had the adapters: device, host or disk.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    state_slots: int | None = None
    state_snapshots: int | None = None
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    adapter_loads: int = 0
    adapter_evictions: int = 0
    adapter_load_seconds: list[float] = []
    adapter_integrity_failures: int = 0
    queue_timeouts: int = 0
    failed_steps: int = 0
    invalid_logits: int = 0
    damaged_adapters: list[str] = []
    device_adapters: list[str] = []
    host_adapters: list[str] = []
    pinned_adapters: list[str] = []
    host_unchanged: bool = False
    device_adapter_bytes: int = 0
    host_adapter_bytes: int = 0
    running_adapters: dict[str, int] = {}
    waiting_adapters: dict[str, int] = {}
    replicas: int | None = None
    dealt: dict[str, int] = {}
