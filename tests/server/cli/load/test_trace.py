import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.cli.load.trace import Request, draw, load, save
from peftserve.server.cli.load.workload import POPULARITIES, Range, Workload

WORKLOADS = st.builds(
    Workload,
    models=st.just(("a", "b", "c")),
    num_requests=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    popularity=st.sampled_from(sorted(POPULARITIES)),
    rate=st.none() | st.floats(0.1, 100),
    cv=st.sampled_from([0.0, 0.5, 1.0, 8.0]),
    lengths=st.sampled_from([None, "punica"]),
    prompt_tokens=st.just(Range(3, 9)),
)
OPEN = Workload(("a", "b"), 20_000, rate=5.0)


@given(WORKLOADS)
def test_the_seed_decides_all_of_it(workload: Workload) -> None:
    trace = draw(workload)
    assert trace == draw(workload)
    assert [request.prompt() for request in trace] == [request.prompt() for request in draw(workload)]
    assert len(trace) == workload.num_requests
    assert all(len(request.prompt()) == request.prompt_tokens for request in trace)


@given(WORKLOADS)
def test_a_closed_loop_has_no_arrivals_and_an_open_one_has_them_in_order(workload: Workload) -> None:
    arrivals = [request.arrival for request in draw(workload)]
    if workload.rate is None:
        assert arrivals == [None] * len(arrivals)
    else:
        assert arrivals[0] == 0
        assert arrivals == sorted(arrivals, key=float)  # type: ignore[arg-type]


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_that_were_asked_for(cv: float) -> None:
    gaps = np.diff([float(request.arrival or 0) for request in draw(replace(OPEN, cv=cv))])
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1, abs=1e-4)


def test_what_one_flag_changes_is_not_changed_by_another() -> None:
    small = replace(OPEN, num_requests=50)
    first, second = draw(small), draw(replace(small, rate=9.0, popularity="zipf"))
    assert [(r.prompt_tokens, r.output_tokens, r.seed) for r in first] == [
        (r.prompt_tokens, r.output_tokens, r.seed) for r in second
    ]
    assert draw(replace(small, seed=1)) != first


def test_prompts_of_requests_differ() -> None:
    prompts = {tuple(request.prompt()) for request in draw(Workload(("a",), 50))}
    assert len(prompts) == 50


@given(workload=WORKLOADS)
def test_a_file_keeps_a_trace(tmp_path_factory: pytest.TempPathFactory, workload: Workload) -> None:
    file = tmp_path_factory.getbasetemp() / "trace.jsonl"
    trace = draw(workload)
    save(trace, file)
    assert load(file) == trace


def test_requests_are_sent_in_the_order_of_arrival(tmp_path: Path) -> None:
    save([Request(2.0, "a", 1, 1, 0), Request(1.0, "b", 1, 1, 0)], tmp_path / "t")
    assert [request.model for request in load(tmp_path / "t")] == ["b", "a"]


GOOD = {"arrival": 0.5, "model": "m", "prompt_tokens": 3, "output_tokens": 4, "seed": 0}


@pytest.mark.parametrize(
    "change", [{"model": 3}, {"seed": 1.5}, {"prompt_tokens": 0}, {"arrival": -1}, {"arrival": "x"}, {"more": 1}]
)
def test_a_wrong_line_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    lines = [json.dumps(GOOD), json.dumps(GOOD | change)]
    (tmp_path / "t").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 2 is no request with arrival, model, prompt_tokens"):
        load(tmp_path / "t")


def test_a_trace_is_open_or_closed(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"arrival": None}))
    with pytest.raises(ValueError, match="some requests have an arrival"):
        load(tmp_path / "t")
    (tmp_path / "t").write_text("\n")
    with pytest.raises(ValueError, match="no request"):
        load(tmp_path / "t")
