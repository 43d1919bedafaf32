import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.cli.load.lengths import Range, parse, punica


@pytest.mark.parametrize(("text", "expected"), [("128", Range(128, 128)), ("8-512", Range(8, 512))])
def test_parse(text: str, expected: Range) -> None:
    assert parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "x", "-3", "8-", "0", "0-5", "9-8", "1.5"])
def test_what_is_no_length(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|more"):
        parse(text)


@given(least=st.integers(1, 50), more=st.integers(0, 50), seed=st.integers(0))
def test_a_range_has_both_ends_and_nothing_beyond(least: int, more: int, seed: int) -> None:
    drawn = Range(least, least + more).draw(2000, np.random.default_rng(seed))
    assert (drawn.min(), drawn.max()) == (least, least + more)


def test_punicas_lengths() -> None:
    prompts, outputs = punica(50_000, np.random.default_rng(0))
    assert prompts.min() >= 1
    assert outputs.min() >= 2
    assert (prompts + outputs).max() <= 2048
    assert np.median(prompts) == pytest.approx(16.5, abs=1)  # half of a lognormal is below scale + loc, here cut to int
    assert (prompts + outputs).mean() == pytest.approx(1024, rel=0.02)
