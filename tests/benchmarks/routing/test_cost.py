"""The benchmark of routes runs, times each of them, and puts the others beside them."""

from pathlib import Path

from benchmarks.routing import cost


def test_every_route_is_timed(tmp_path: Path) -> None:
    found = cost.costs(tmp_path, others=3, rounds=1)
    assert [*found] == [cost.BASE, "a0", *cost.bodies(cost.Texts(seed=0))]
    assert all(one.alone > 0 and one.among > 0 for one in found.values())


def test_the_timed_routes_are_as_the_text_says() -> None:
    match = cost.bodies(cost.Texts(seed=0))["match"]
    candidates = match["candidates"]
    assert isinstance(candidates, list)
    assert (len(candidates), len(candidates[0]["examples"])) == (cost.CANDIDATES, cost.EXAMPLES)
