"""The engine's state as Prometheus series, read from its newest message at each scrape.

Beside our own names stand those of vLLM that Kubernetes inference gateways read, with vLLM's labels.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...wire.messages import EngineStats, ModelInfo
from ..engine.interface import RemoteEngine

MAX_LOADED_NAMES = 256  # series of adapters that are loaded
LEVELS = ("gpu", "cpu")  # vLLM's words for device and host

Loaded = Mapping[str, str]
"""From the names of adapters that are in memory to the level of each, one of LEVELS."""


def loaded_names(stats: EngineStats, names_of: Callable[[str], Iterable[str]]) -> Loaded:
    """Return the names of the adapters in memory, those on the device first, MAX_LOADED_NAMES at most.

    names_of: from a digest to the names under which a client gets it.
    """
    found: dict[str, str] = {}
    for level, digests in zip(LEVELS, (stats.device_adapters, stats.host_adapters), strict=True):
        for digest in digests:
            for name in names_of(digest):
                if len(found) == MAX_LOADED_NAMES:
                    return found
                found.setdefault(name, level)
    return found


class EngineCollector(Collector):
    """A collector that reads the engine's state at each scrape.

    model_name: the base's id, vLLM's label. names: (digest, name) of the adapters that requests in flight use.
    loaded: what `loaded_names` has found.
    """

    def __init__(
        self, engine: RemoteEngine, model_name: str, names: Collection[tuple[str, str]], loaded: Loaded
    ) -> None:
        self._engine = engine
        self._model_name = model_name
        self._names = names
        self._loaded = loaded

    def collect(self) -> Iterable[Metric]:
        stats, info = self._engine.stats, self._engine.info
        yield GaugeMetricFamily(
            "peftserve_engine_stats_age_seconds",
            "Since the engine has last said how it is; over 5 something is wrong, unless a step takes that long",
            self._engine.stats_age,
        )
        yield CounterMetricFamily(
            "peftserve_engine_restarts", "Engines that were started in place of another", self._engine.restarts
        )
        yield from _engine_gauges(stats)
        yield from _engine_counters(stats)
        yield from _adapter_tiers(stats)
        if stats.replicas is not None:
            yield from _of_replicas(stats.replicas, stats.dealt)
        if info is not None:
            yield from self._vllm_gauges(stats)
            yield _cache_config(info, self._model_name)
            yield self._lora_info(stats, info)
            yield self._lora_loaded()
            yield from _graphs(info)

    def _vllm_gauges(self, stats: EngineStats) -> Iterable[Metric]:
        for name, text, value in (
            ("vllm:num_requests_running", "Sequences in the engine's batch", stats.num_running),
            ("vllm:num_requests_waiting", "Sequences that wait for the engine", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all", _kv_usage(stats)),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge

    def _lora_info(self, stats: EngineStats, info: ModelInfo) -> Metric:
        """Return exactly one series, as its readers want it: its value is the time, its labels are lists of names.

        A gateway takes the running adapters for those that need no load, so these are all that the device holds.
        """
        gauge = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters on the device, and those of sequences that wait for the engine; the value is the time",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        running = self._named(stats.running_adapters) | {n for n, level in self._loaded.items() if level == "gpu"}
        waiting = self._named(stats.waiting_adapters)
        gauge.add_metric([str(info.max_loras), *(",".join(sorted(names)) for names in (running, waiting))], time.time())
        return gauge

    def _lora_loaded(self) -> Metric:
        gauge = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "Adapters in memory: on the device, which is gpu on every machine, or on the host",
            labels=["adapter_name", "level"],
        )
        for name, level in self._loaded.items():
            gauge.add_metric([name, level], 1)
        return gauge

    def _named(self, adapters: Mapping[str, int]) -> set[str]:
        return {name for digest, name in self._names if digest in adapters}


def _kv_usage(stats: EngineStats) -> float:
    return stats.kv_pages_used / stats.kv_pages_total if stats.kv_pages_total else 0.0


def _cache_config(info: ModelInfo, model_name: str) -> Metric:
    labels = {
        "model_name": model_name,
        "block_size": str(info.page_size),
        "num_gpu_blocks": str(info.num_kv_pages),
        "cache_dtype": info.dtype,
    }
    gauge = GaugeMetricFamily("vllm:cache_config_info", "The KV cache, in its labels", labels=list(labels))
    gauge.add_metric(list(labels.values()), 1)
    return gauge


def _graphs(info: ModelInfo) -> Iterable[Metric]:
    """Yield nothing without a GPU, so that 0 always says that graphs failed or were turned off."""
    if info.cuda_graphs is not None:
        text = "CUDA graphs of decode steps, recorded at start; 0 if the model runs without, which is slower"
        yield GaugeMetricFamily("peftserve_cuda_graphs", text, info.cuda_graphs)


def _engine_gauges(stats: EngineStats) -> Iterable[Metric]:
    yield GaugeMetricFamily("peftserve_sequences_running", "Sequences in the engine's batch", stats.num_running)
    yield GaugeMetricFamily("peftserve_sequences_waiting", "Sequences that wait for the engine", stats.num_waiting)
    yield GaugeMetricFamily("peftserve_kv_cache_usage_ratio", "Share of KV pages in use", _kv_usage(stats))
    if stats.state_slots is not None and stats.state_snapshots is not None:
        states = GaugeMetricFamily("peftserve_state_slots", "Slots of recurrent state in use", labels=["of"])
        states.add_metric(["sequences"], stats.state_slots)
        states.add_metric(["snapshots"], stats.state_snapshots)
        yield states


def _engine_counters(stats: EngineStats) -> Iterable[Metric]:
    for name, text, value in (
        ("steps", "Steps of the engine", stats.steps),
        ("preemptions", "Sequences that were put back for want of KV pages, or for other tenants", stats.preemptions),
        ("prefix_cache_query_tokens", "Prompt tokens looked up in the prefix cache", stats.prefix_query_tokens),
        ("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache", stats.prefix_hit_tokens),
        ("adapter_loads", "Adapters brought to the device", stats.adapter_loads),
        ("adapter_evictions", "Adapters moved off the device to make room", stats.adapter_evictions),
        ("queue_timeouts", "Sequences that waited longer for their first step than they may", stats.queue_timeouts),
        ("failed_steps", "Steps that failed, with all their sequences", stats.failed_steps),
        ("invalid_logits", "Sequences that ended for logits that are not finite", stats.invalid_logits),
    ):
        yield CounterMetricFamily(f"peftserve_{name}", text, value)
    yield CounterMetricFamily(
        "peftserve:adapter_integrity_failures",
        "Adapters' files that were not what was stored",
        stats.adapter_integrity_failures,
    )


def _adapter_tiers(stats: EngineStats) -> Iterable[Metric]:
    resident = GaugeMetricFamily("peftserve_adapters_resident", "Adapters in memory", labels=["tier"])
    size = GaugeMetricFamily("peftserve_adapter_bytes", "Memory that adapters take", labels=["tier"])
    for tier, digests, num_bytes in (
        ("device", stats.device_adapters, stats.device_adapter_bytes),
        ("host", stats.host_adapters, stats.host_adapter_bytes),
    ):
        resident.add_metric([tier], len(digests))
        size.add_metric([tier], num_bytes)
    yield resident
    yield size


def _of_replicas(replicas: int, dealt: Mapping[str, int]) -> Iterable[Metric]:
    yield GaugeMetricFamily("peftserve_replicas", "Engines that take sequences", replicas)
    counter = CounterMetricFamily(
        "peftserve_sequences_dealt",
        "Sequences with adapters, by where their engine had these when it was chosen",
        labels=["tier"],
    )
    for tier in ("device", "host", "disk"):
        counter.add_metric([tier], dealt.get(tier, 0))
    yield counter
