from types import ModuleType

import numpy as np

from peftserve.kernels.ops.experts.combinations import all_combinations


def test_rows_of_the_same_adapters_are_one_combination(moe: ModuleType) -> None:
    case = moe.Case(2)
    case.add("a", up_proj=4, down_proj=4)
    case.add("b", down_proj=2)
    shares = [("a", 0.5, 0, 2), ("b", 2.0, 1, 3), ("b", 1.0, 1, 3), ("a", 1.0, 4, 6), ("b", 1.0, 5, 6)]
    found = all_combinations({"": case.segments(shares)}, 8)[""]
    assert [op.fields["parameter"] for op in found.ops] == ["up_proj", "down_proj", "down_proj"]
    assert found.members[0] == ()
    sets = [set(found.members[number]) for number in found.of_row]
    assert sets == [{0, 1}, {0, 1, 2}, {2}, set(), {0, 1}, {0, 1, 2}, set(), set()]
    assert len(found.members) == 4
    assert found.num_rows == 5
    assert found.weights.T.tolist() == [
        [0.5, 0.5, 0.0],
        [0.5, 0.5, 3.0],  # one adapter twice on a row
        [3.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [1.0, 1.0, 0.0],
        [1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
    ]


def test_modules_with_the_same_work_share_the_arrays(moe: ModuleType) -> None:
    one, other = moe.Case(2), moe.Case(2)
    for case in (one, other):
        case.add("a", down_proj=4)
        case.add("b", down_proj=2)
    same = [("a", 1.0, 0, 2), ("b", 1.0, 2, 3)]
    work = {"1": one.segments(same), "2": other.segments(same), "3": other.segments([("b", 1.0, 2, 3)])}
    found = all_combinations(work, 3)
    assert found["1"].of_row is found["2"].of_row
    assert found["1"].weights is found["2"].weights
    assert found["1"].ops[0].fields["a"] is not found["2"].ops[0].fields["a"]
    assert np.array_equal(found["3"].of_row, [0, 0, 1])
