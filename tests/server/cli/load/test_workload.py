from peftserve.server.cli.load.lengths import Range
from peftserve.server.cli.load.workload import WORKLOADS, Workload


def test_settings_are_those_that_have_a_part_in_it() -> None:
    closed = Workload(("a",), 4).settings()
    assert closed["prompt_tokens"] == "128"
    assert not closed.keys() & {"rate", "cv", "alpha", "lengths"}
    opened = Workload(("a",), 4, rate=2.0, popularity="power", lengths="punica").settings()
    assert opened.keys() >= {"rate", "cv", "alpha", "lengths"}
    assert not opened.keys() & {"concurrency", "prompt_tokens"}


def test_presets_are_the_papers() -> None:
    s_lora, punica = WORKLOADS["s-lora"], WORKLOADS["punica"]
    assert (s_lora["rate"], s_lora["duration"], s_lora["slo_ttft"]) == (2, 300, 6)
    assert s_lora["prompt_tokens"] == s_lora["output_tokens"] == Range(8, 511)
    assert (punica["concurrency"], punica["num_requests"]) == (32, 1024)
