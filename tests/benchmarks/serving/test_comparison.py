from collections.abc import Callable
from types import ModuleType
from typing import Any

Script = Callable[[str], ModuleType]


def run(speed: float, ttft: float | None = None) -> dict[str, Any]:
    return {"all": {"tokens_per_second": speed, "ttft_ms": {} if ttft is None else {"p50": ttft, "p99": ttft}}}


def test_ratios_are_taken_in_each_round(script: Script) -> None:
    runs = {"a": [run(10, 4), run(1, 2), run(8, 2)], "b": [run(5, 1), run(1, 1), run(1, 1)], "c": [run(0)] * 3}
    found = script("serving.comparison").ratios(runs)
    assert found["b"]["tok/s"] == {"median": 2, "rounds": [2, 1, 8]}
    assert found["b"]["TTFT p50, ms"]["median"] == 2
    assert found["c"] == {}


def test_the_table_has_a_column_for_each_server_and_ratio(script: Script) -> None:
    comparison = script("serving.comparison")
    runs = {"a": [run(10, 4)], "b": [run(5)]}
    lines = comparison.table({"runs": runs, "ratios": comparison.ratios(runs)}).splitlines()
    assert lines[0].split()[-5:] == ["a", "b", "a", "/", "b"]
    assert lines[1].split() == ["tok/s", "10.00", "5.00", "2.000"]
    assert [line.split()[-3:] for line in lines[2:]] == [["4.00", "-", "-"]] * 2


def test_phases_have_rows_of_their_own(script: Script) -> None:
    def phases(prefill: float, decode: float) -> dict[str, Any]:
        return {"prefill": {"prompt_tokens_per_second": prefill}, "decode": run(decode)}

    runs = {"a": [{**run(10), "phases": phases(600, 40)}], "b": [{**run(5), "phases": phases(200, 80)}]}
    comparison = script("serving.comparison")
    found = comparison.ratios(runs)
    assert {name: found["b"][name]["median"] for name in ("prefill, prompt tok/s", "decode, tok/s")} == {
        "prefill, prompt tok/s": 3,
        "decode, tok/s": 0.5,
    }
    rows = comparison.table({"runs": runs, "ratios": found}).splitlines()
    assert rows[2].split()[-3:] == ["600.00", "200.00", "3.000"]
