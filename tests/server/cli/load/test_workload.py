import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.cli.load.workload import (
    POPULARITIES,
    WORKLOADS,
    Range,
    Workload,
    geometric_counts,
    parse_range,
    power,
    punica_lengths,
    skewed,
    uniform,
    zipf,
)

NAMES = st.sampled_from(sorted(POPULARITIES))


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


@pytest.mark.parametrize(("text", "expected"), [("128", Range(128, 128)), ("8-512", Range(8, 512))])
def test_parse_range(text: str, expected: Range) -> None:
    assert parse_range(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "x", "-3", "8-", "0", "0-5", "9-8", "1.5"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|more"):
        parse_range(text)


@given(least=st.integers(1, 50), more=st.integers(0, 50), seed=st.integers(0))
def test_a_range_has_both_ends_and_nothing_beyond(least: int, more: int, seed: int) -> None:
    drawn = Range(least, least + more).draw(2000, np.random.default_rng(seed))
    assert (drawn.min(), drawn.max()) == (least, least + more)


def test_punicas_lengths() -> None:
    prompts, outputs = punica_lengths(50_000, np.random.default_rng(0))
    assert prompts.min() >= 1
    assert outputs.min() >= 2
    assert (prompts + outputs).max() <= 2048
    assert np.median(prompts) == pytest.approx(16.5, abs=1)  # half of a lognormal is below scale + loc, here cut to int
    assert (prompts + outputs).mean() == pytest.approx(1024, rel=0.02)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(name=NAMES, models=st.integers(1, 50), count=st.integers(1, 300), alpha=st.floats(0.05, 3), seed=st.integers(0))
def test_every_request_has_a_model_and_the_seed_decides_which(
    name: str, models: int, count: int, alpha: float, seed: int
) -> None:
    chosen = POPULARITIES[name](models, count, alpha, random(seed))
    assert chosen.shape == (count,)
    assert 0 <= chosen.min() <= chosen.max() < models
    assert (chosen == POPULARITIES[name](models, count, alpha, random(seed))).all()


@pytest.mark.parametrize(("count", "used"), [(1, 1), (2, 2), (4, 2), (5, 3), (1024, 32)])
def test_punicas_uniform_has_the_root_of_the_requests_as_models(count: int, used: int) -> None:
    counts = np.bincount(uniform(100, count, 1.0, random()))
    assert len(counts) == used
    assert counts.max() - counts.min() <= 1


def test_punicas_skewed_has_its_papers_counts() -> None:
    expected = [291, 194, 157, 129, 86, 57, 38, 25, 17, 11, 7, 5, 3, 2, 1, 1]
    assert geometric_counts(1024) == expected
    assert np.bincount(skewed(100, 1024, 1.0, random())).tolist() == expected


@given(st.integers(0, 5000))
def test_geometric_counts_use_all_requests(count: int) -> None:
    assert sum(geometric_counts(count)) == count


@pytest.mark.parametrize(("alpha", "share"), [(1.0, 0.005), (0.6, 0.04), (0.3, 0.20), (0.1, 0.59)])
def test_s_loras_power_gives_the_top_adapter_its_share(alpha: float, share: float) -> None:
    counts = np.bincount(power(200, 100_000, alpha, random()), minlength=200)
    assert counts[0] / 100_000 == pytest.approx(share, abs=0.01)
    assert counts[:50].sum() / 100_000 == pytest.approx(0.25**alpha, abs=0.01)


def test_zipf_falls_as_its_exponent_says() -> None:
    counts = np.bincount(zipf(10, 200_000, 2.0, random()))
    assert counts[0] / counts[1] == pytest.approx(4, rel=0.05)
    assert counts[0] / counts[3] == pytest.approx(16, rel=0.1)
