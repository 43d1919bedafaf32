"""Parts that run beside each other meet at the calls that are for all rows."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.engine.model.state.joining import Joint
from peftserve.server.engine.model.state.parts import Part

NO_SLOTS = torch.empty(0, dtype=torch.int64)


def spans(lengths: list[int], order: list[int]) -> list[Part]:
    """Return parts of one sequence each, whose rows follow each other in `order`."""
    begins, begin = {}, 0
    for place in order:
        begins[place], begin = begin, begin + lengths[place]
    return [Part(slice(begins[i], begins[i] + n), NO_SLOTS, 1, n, False) for i, n in enumerate(lengths)]


@given(st.data())
def test_every_part_gets_its_rows_of_each_call_that_it_makes(data: st.DataObject) -> None:
    """Whatever the lengths, the places, and which of the calls each part makes, once or more."""
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    parts = spans(lengths, data.draw(st.permutations(range(len(lengths)))))
    calls = [data.draw(st.lists(st.sampled_from("abc"), max_size=4)) for _ in parts]
    joint, total = Joint(), sum(lengths)
    x = torch.randn(1, total, 3)

    def work(part: Part, names: list[str]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            y = part.take(x)
            for name in names:
                y = joint.call(name, lambda whole, name=name: whole * ord(name) + 1, y)
            return y

        return run

    outputs = joint.run(parts, [work(*each) for each in zip(parts, calls, strict=True)], total)
    for part, names, output in zip(parts, calls, outputs, strict=True):
        expected = part.take(x)
        for name in names:
            expected = expected * ord(name) + 1
        torch.testing.assert_close(output, expected)
    assert not joint.active


def test_tensors_whose_rows_are_parts_of_tokens_meet_too() -> None:
    """As norms of heads do: in parts, and in a step that is one part."""
    joint, x, y = Joint(), torch.randn(10, 4), torch.randn(10, 4)

    def add(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        assert some.shape == (1, 5, 2, 4)
        return some + 2 * others

    def work(begin: int, end: int) -> Callable[[], torch.Tensor]:
        return lambda: joint.call_by_rows("norm", add, x[begin:end], y[begin:end])

    outputs = joint.run(spans([2, 3], [0, 1]), [work(0, 4), work(4, 10)], 5)
    torch.testing.assert_close(torch.cat(outputs), x + 2 * y)
    torch.testing.assert_close(joint.run_alone(work(0, 10), 5), x + 2 * y)


def test_a_call_that_all_make_is_made_once_and_on_one_tensor_for_siblings() -> None:
    parts, joint, seen = spans([2, 3], [0, 1]), Joint(), list[torch.Tensor]()

    def keep(whole: torch.Tensor) -> torch.Tensor:
        seen.append(whole)
        return whole + 1

    def work(part: Part) -> torch.Tensor:
        x = torch.full((1, part.length, 1), float(part.length))
        return joint.call("k", keep, x) + joint.call("v", keep, x)

    joint.run(parts, [lambda part=part: work(part) for part in parts], 5)  # type: ignore[misc]
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert seen[0].flatten().tolist() == [2, 2, 3, 3, 3]


def test_between_two_calls_parts_run_in_their_order() -> None:
    """So tokens of one sequence, as parts of their own, find the states that those before have left."""
    parts, joint, order = spans([1, 1, 1], [0, 1, 2]), Joint(), list[tuple[str, int]]()

    def work(place: int) -> torch.Tensor:
        y = torch.zeros(1, 1, 1)
        for name in "ab":
            order.append((name, place))
            y = joint.call(name, torch.clone, y)
        return y

    joint.run(parts, [lambda place=place: work(place) for place in range(3)], 3)  # type: ignore[misc]
    assert order == [(name, place) for name in "ab" for place in range(3)]


def test_an_error_in_a_part_is_raised_and_ends_the_call() -> None:
    joint = Joint()

    def fail() -> torch.Tensor:
        raise RuntimeError("in a part")

    with pytest.raises(RuntimeError, match="in a part"):
        joint.run(spans([1], [0]), [fail], 1)
    assert not joint.active
