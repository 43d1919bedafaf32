from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.layout import Group, Segment
from peftserve.kernels.triton_bypass import TritonBypass

GROUPS = (Group(300, (40, 17)), Group(20, (33,), gather=True))


@pytest.fixture(autouse=True)
def poison(kit: ModuleType) -> Iterator[None]:
    """On the CPU, torch then fills what it allocates with NaN, so that a kernel that reads what none wrote shows."""
    torch.use_deterministic_algorithms(kit.DEVICE == "cpu")
    yield
    torch.use_deterministic_algorithms(False)


def make(kit: ModuleType, num_programs: int = 64) -> tuple[Any, TritonBypass]:
    case = kit.Case(GROUPS)
    case.add(0, {0: (8, 24), 1: (3,)})
    case.add(1, {0: (0, 1)})
    backend = TritonBypass(case.arena, GROUPS, max_slots=3, num_programs=num_programs)
    case.attach_all(backend)
    return case, backend


@pytest.mark.parametrize("length", [1, 5, 20])
def test_few_programs_are_split_over_the_features(kit: ModuleType, length: int) -> None:
    case, backend = make(kit)
    segments = [Segment(0, 0.5, 0, length), Segment(1, 2.0, length, length + 1)]
    backend.begin(segments, [])
    shrunk = backend.shrink(0, case.input(0, length + 1))
    assert shrunk is not None
    assert shrunk.h.shape[0] == 4
    kit.check_step(case, backend, segments, [], length + 2, 1e-6)


def test_many_programs_are_not_split(kit: ModuleType) -> None:
    case, backend = make(kit, num_programs=2)
    backend.begin([Segment(0, 1.0, row, row + 1) for row in range(9)], [])
    shrunk = backend.shrink(0, case.input(0, 9))
    assert shrunk is not None
    assert shrunk.h.shape[0] == 1


def test_tables_stay_where_they_are(kit: ModuleType) -> None:
    case, backend = make(kit)
    address = backend._table.data_ptr()
    backend.detach(1)
    assert not backend._table[1].any()
    case.add(2, {0: (2, 0)})
    backend.attach(2, *case.slots[2])
    assert backend._table.data_ptr() == address
    base, layout = case.slots[2]
    assert backend._table[2, 0].tolist() == [
        base + layout[0].a,
        2,
        2,
        0,
        base + layout[0].b[0],
        0,
        2,
        base + layout[0].b[1],
    ]


def test_a_slot_beyond_the_table_is_refused(kit: ModuleType) -> None:
    case, backend = make(kit)
    with pytest.raises(IndexError):
        backend.attach(3, *case.slots[0])


def test_the_work_list_outgrows_its_buffer(kit: ModuleType) -> None:
    case, backend = make(kit)
    for rows in (1, 40, 3):
        segments = [Segment(row % 2, 1.0, row, row + 1) for row in range(rows)]
        kit.check_step(case, backend, segments, segments, rows, 1e-6)
