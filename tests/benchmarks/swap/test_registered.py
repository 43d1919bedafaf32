from benchmarks.swap.registered import summarize


def run(rate: float, hits: float = 1.0) -> dict[str, float]:
    return {"tokens_per_second": rate, "cpu_ms_per_token": 0.0, "hit_rate": hits, "failed": 0.0}


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down in the second round does so for both."""
    made = summarize([run(90), run(45), run(180)], [run(100), run(50), run(200)])
    assert made["over_baseline"] == 0.9
    assert made["cpu_over_baseline"] is None
    assert made["tokens_per_second"] == 90
    assert made["hit_rate"] == 1
