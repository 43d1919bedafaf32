import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from peftserve.adapters.names import VersionRef
from peftserve.adapters.resolved import Member, Resolved
from peftserve.server.api.metrics.requests import MAX_ADAPTER_LABELS, OTHER, Metrics
from peftserve.server.wire.messages import EngineStats


async def _scrape(server):
    """Sample name to {labels: value}."""
    text = (await server.http.get("/metrics")).text
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def _single(samples, name):
    (value,) = samples[name].values()
    return value


async def test_requests_tokens_and_latencies_are_counted(server):
    await server.upload("sql")
    body = {"prompt": [5, 6, 7], "max_tokens": 4}
    await server.http.post("/v1/completions", json={**body, "n": 2})
    await server.http.post("/v1/completions", json={**body, "model": "sql", "stream": True})
    samples = await _scrape(server)
    assert samples["peftserve_requests_total"] == {(("outcome", "completed"),): 2}
    assert _single(samples, "peftserve_prompt_tokens_total") == 6
    assert _single(samples, "peftserve_generation_tokens_total") == 12
    assert samples["peftserve_adapter_requests_total"] == {(("adapter", "sql"),): 1}
    assert samples["peftserve_adapter_generation_tokens_total"] == {(("adapter", "sql"),): 4}
    assert _single(samples, "peftserve_time_to_first_token_seconds_count") == 3
    assert _single(samples, "peftserve_time_per_output_token_seconds_count") == 9
    assert _single(samples, "peftserve_request_seconds_count") == 2
    assert _single(samples, "peftserve_queue_seconds_count") == 3


async def test_failures_are_told_apart(server, engine):
    engine.error = "no"
    await server.http.post("/v1/completions", json={"prompt": [5]})
    await server.http.post("/v1/completions", json={"prompt": [5], "stream": True})
    assert (await _scrape(server))["peftserve_requests_total"] == {(("outcome", "failed"),): 2}


async def test_the_engines_state_in_our_names_and_vllms(server, engine):
    engine.publish(
        EngineStats(
            num_running=3,
            num_waiting=2,
            adapter_integrity_failures=7,
            kv_pages_used=16,
            kv_pages_total=64,
            state_slots=3,
            state_snapshots=0,
            prefix_query_tokens=100,
            prefix_hit_tokens=40,
            preemptions=1,
            steps=9,
            adapter_loads=5,
            adapter_evictions=4,
            adapter_load_seconds=[0.02, 0.3],
            device_adapters=["d1", "d2"],
            host_adapters=["d1", "d2", "d3"],
            device_adapter_bytes=1000,
            host_adapter_bytes=3000,
        )
    )
    samples = await _scrape(server)
    base = (("model_name", "base"),)
    assert samples["vllm:num_requests_running"] == {base: 3}
    assert samples["vllm:num_requests_waiting"] == {base: 2}
    assert samples["vllm:kv_cache_usage_perc"] == {base: 0.25}
    assert _single(samples, "peftserve_sequences_running") == 3
    assert _single(samples, "peftserve:adapter_integrity_failures_total") == 7
    assert _single(samples, "peftserve_kv_cache_usage_ratio") == 0.25
    assert samples["peftserve_state_slots"] == {(("of", "sequences"),): 3, (("of", "snapshots"),): 0}
    assert _single(samples, "peftserve_prefix_cache_hit_tokens_total") == 40
    assert _single(samples, "peftserve_preemptions_total") == 1
    assert _single(samples, "peftserve_adapter_loads_total") == 5
    assert _single(samples, "peftserve_adapter_evictions_total") == 4
    assert _single(samples, "peftserve_adapter_load_seconds_count") == 2
    assert samples["peftserve_adapters_resident"] == {(("tier", "device"),): 2, (("tier", "host"),): 3}
    assert samples["peftserve_adapter_bytes"] == {(("tier", "device"),): 1000, (("tier", "host"),): 3000}
    ((labels, value),) = samples["vllm:cache_config_info"].items()
    assert value == 1
    assert dict(labels) == {
        "model_name": "base",
        "block_size": "16",
        "num_gpu_blocks": "64",
        "cache_dtype": "float32",
    }


async def test_a_gpus_graphs_are_counted_and_their_absence_is_a_zero(server, engine, model_info):
    assert "peftserve_cuda_graphs" not in await _scrape(server), "on a CPU"
    for count in (30, 0):
        engine.info = model_info(device="cuda:0", cuda_graphs=count)
        assert _single(await _scrape(server), "peftserve_cuda_graphs") == count


async def test_adapters_that_are_loaded_are_named_by_their_newest_version(server, engine):
    old, other = [(await server.upload(name, rank=rank)).json()["digest"] for rank, name in ((1, "sql"), (2, "other"))]
    for name in ("twin", "sql"):  # two names of one content; an older version is not what its name stands for
        new = (await server.upload(name, rank=3)).json()["digest"]
    engine.publish(EngineStats(device_adapters=[new, old, "gone"], host_adapters=[new, old, other, "gone"]))
    samples = await _scrape(server)
    levels = {"sql": "gpu", "twin": "gpu", "other": "cpu"}
    assert samples["vllm:lora_adapter_loaded"] == {
        (("adapter_name", name), ("level", level)): 1 for name, level in levels.items()
    }
    ((labels, _),) = samples["vllm:lora_requests_info"].items()
    assert dict(labels)["running_lora_adapters"] == "sql,twin"


async def test_one_series_names_running_and_waiting_adapters(server, engine, until):
    digests = {name: (await server.upload(name, rank=rank)).json()["digest"] for rank, name in enumerate("abc", 1)}
    engine.delay = 60
    bodies = [{"model": name, "prompt": [5], "max_tokens": 100} for name in "ab"]
    requests = [asyncio.create_task(server.http.post("/v1/completions", json=body)) for body in bodies]
    await until(lambda: len(engine.running) == 2)
    engine.publish(
        EngineStats(
            running_adapters={digests["b"]: 1, digests["a"]: 2, digests["c"]: 1}, waiting_adapters={digests["a"]: 1}
        )
    )
    ((labels, value),) = (await _scrape(server))["vllm:lora_requests_info"].items()
    # c has no request in flight any more; the engine's message is a little old.
    assert dict(labels) == {
        "max_lora": "8",
        "running_lora_adapters": "a,b",
        "waiting_lora_adapters": "a",
    }
    assert value == pytest.approx(time.time(), abs=60)
    for request in requests:
        request.cancel()
    await until(lambda: not engine.running)
    engine.publish(EngineStats())
    ((labels, _),) = (await _scrape(server))["vllm:lora_requests_info"].items()
    assert dict(labels)["running_lora_adapters"] == ""


def test_labels_of_adapters_are_bounded():
    metrics = Metrics()
    for i in range(MAX_ADAPTER_LABELS + 10):
        resolved = Resolved((Member(VersionRef(f"a{i}", 1, "d"), 1.0),), "", "")
        metrics.begin(resolved)
        for counter in metrics.token_counters(metrics.adapter_labels(resolved)):
            counter.inc(3)
        metrics.end(resolved, "completed", 0.1)
    values = {
        sample.labels["adapter"]: sample.value
        for family in metrics.registry.collect()
        if family.name == "peftserve_adapter_generation_tokens"
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert len(values) == MAX_ADAPTER_LABELS + 1
    assert values[OTHER] == 30
