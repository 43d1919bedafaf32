"""The scraper reads what Prometheus's Go library reads, and nothing that it would not."""

from types import ModuleType

import pytest

GOOD = """\
# HELP vllm:num_requests_waiting Sequences that wait.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="a \\"b\\" \\\\ c"} 3.0
vllm:num_requests_waiting{model_name="later"} 4 1700000000000
# TYPE seconds histogram
seconds_bucket{le="+Inf"} 2
seconds_sum 0.5
seconds_count 2
"""


def test_families_with_their_series(oracle: ModuleType) -> None:
    families = oracle.families_of(GOOD)
    assert families.keys() == {"vllm:num_requests_waiting", "seconds"}
    waiting = families["vllm:num_requests_waiting"]
    assert [one.labels["model_name"] for one in waiting.series] == ['a "b" \\ c', "later"]
    assert len(families["seconds"].series) == 3


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("# TYPE vllm:num_requests_waiting gauge", "second TYPE"),
        ("# HELP vllm:num_requests_waiting again", "second HELP"),
        ("# TYPE other info", "unknown metric type"),
        ('other{a="1",a="2"} 3', "duplicate label"),
        ('other{a="1} 3', "no sample"),
        ("other-name 3", "no sample"),
        ("other three", "could not convert"),
    ],
)
def test_one_bad_line_spoils_all(oracle: ModuleType, line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        oracle.families_of(f"{GOOD}{line}\n")


def test_the_newest_series_of_adapters_counts_by_its_value(oracle: ModuleType) -> None:
    gauges = ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc")
    lines = [f"# TYPE vllm:{name} gauge\nvllm:{name} 0" for name in gauges]
    lines += ['# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size="16",num_gpu_blocks="9"} 1']
    lines += ["# TYPE vllm:lora_requests_info gauge"]
    for running, value in (("old", 1.0), ("new, newer", 2.5), ("older", 2.0)):
        labels = f'max_lora="4",running_lora_adapters="{running}",waiting_lora_adapters=""'
        lines.append(f"vllm:lora_requests_info{{{labels}}} {value}")
    pod = oracle.pod_state("\n".join(lines) + "\n")
    assert (pod.active, pod.queued, pod.max_active, pod.num_blocks) == ({"new", "newer"}, frozenset(), 4, 9)
    assert [oracle.lora_score(pod, name) for name in ("new", "old")] == [1.0, 0.8]
