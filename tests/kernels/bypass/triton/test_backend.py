from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftserve.kernels.bypass.layout import Group, GroupLayout, Segment
from peftserve.kernels.bypass.triton import backend as triton_bypass
from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.kernels.bypass.triton.tuning import defaults

GROUPS = (Group(300, (40, 17)), Group(20, (33,), gather=True), Group(70, (300, 9, 40, 5, 70)))
RANKS = {0: {0: (8, 24), 1: (3,), 2: (1, 2, 3, 4, 5)}, 1: {0: (0, 1), 2: (0, 0, 7, 0, 16)}, 2: {0: (65, 5)}}


@pytest.fixture(autouse=True)
def poison(kit: ModuleType) -> Iterator[None]:
    """On the CPU, torch then fills what it allocates with NaN, so that a kernel that reads what none wrote shows."""
    torch.use_deterministic_algorithms(kit.DEVICE == "cpu")
    yield
    torch.use_deterministic_algorithms(False)


class InTwoLaunches(TritonBypass):
    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        self.start(group, x)
        super().add_(group, x, outputs)


def make(
    kit: ModuleType, dtype: torch.dtype = torch.float32, kind: type[TritonBypass] = TritonBypass, **options: Any
) -> tuple[Any, TritonBypass]:
    """In the interpreter programs run one after another: one that waits for another would wait for ever."""
    case = kit.Case(GROUPS, dtype)
    for slot, ranks in RANKS.items():
        case.add(slot, ranks)
    if kit.DEVICE == "cpu":
        options.setdefault("num_programs", 1)
    backend = kind(case.arena, GROUPS, max_slots=4, **{"max_rows": 300, **options})
    case.attach_all(backend)
    backend._h.fill_(float("nan"))
    return case, backend


def places(backend: TritonBypass) -> list[int]:
    return [tensor.data_ptr() for tensor in (backend._step_memory.there, backend._h, backend._counters)]


def singles(slots: Sequence[int]) -> list[Segment]:
    return [Segment(slot, 1.0, row, row + 1) for row, slot in enumerate(slots)]


class Launches:
    """Takes the kernel's place: keeps how each launch was asked for, and launches it if it is to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, run: bool = True) -> None:
        self.asked: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        kernel = triton_bypass.bypass_kernel

        class Kernel:
            def __getitem__(_, grid: Any) -> Any:
                def launch(*args: Any, **options: Any) -> None:
                    where = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args)
                    self.asked.append((grid, where, options))
                    if run:
                        kernel[grid](*args, **options)

                return launch

        monkeypatch.setattr(triton_bypass, "bypass_kernel", Kernel())


@pytest.mark.parametrize("length", [1, 5, 20])
def test_two_launches_do_what_one_does(kit: ModuleType, length: int) -> None:
    segments = [Segment(0, 0.5, 0, length), Segment(1, 2.0, length, length + 1), Segment(2, 1.0, 1, 2)]
    case, backend = make(kit, kind=InTwoLaunches, num_programs=7)
    kit.check_step(case, backend, segments, [], length + 2, 1e-6)


work = st.lists(
    st.builds(
        lambda slot, weight, start, length: Segment(slot, weight, start, min(start + length, 300)),
        st.sampled_from(list(RANKS)),
        st.sampled_from([1.0, 0.5, -2.0]),
        st.integers(0, 299),
        st.sampled_from([0, 1, 2, 7, 16, 17, 64, 300]),
    ),
    max_size=6,
)


@given(work, st.sampled_from([torch.float16, torch.float32]), st.sampled_from([TritonBypass, InTwoLaunches]))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_work_list(kit: ModuleType, segments: list[Segment], dtype: torch.dtype, kind: type[TritonBypass]) -> None:
    case, backend = make(kit, dtype, kind)
    kit.check_step(case, backend, segments, segments[:1], 300, 1e-6 if dtype is torch.float32 else 2e-3)
    assert not backend._counters.any()


def test_one_launch_a_group_and_one_for_every_four_sites(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case, backend = make(kit)
    launches = Launches(monkeypatch)
    kit.check_step(case, backend, singles((0, 1)), [], 3, 1e-6)
    assert [args[22:24] for _, args, _ in launches.asked] == [(0, 0), (1, 0), (2, 0), (2, 4)]
    launches.asked.clear()
    kit.check_step(case, backend, singles((2,)), [], 3, 1e-6)  # an adapter on the first group alone
    assert len(launches.asked) == 1


def test_a_layer_is_four_launches(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The linears of a Llama layer, at a small width, whatever adapters run."""
    groups = (Group(48, (48, 16, 16)), Group(48, (48,)), Group(48, (128, 128)), Group(128, (48,)))
    case = kit.Case(groups)
    for slot, rank in enumerate((4, 8, 64)):
        case.add(slot, {i: (rank,) * len(group.out_features) for i, group in enumerate(groups)})
    programs = 1 if kit.DEVICE == "cpu" else None
    backend = TritonBypass(case.arena, groups, max_slots=3, max_rows=4, num_programs=programs)
    case.attach_all(backend)
    launches = Launches(monkeypatch)
    kit.check_step(case, backend, singles((0, 1, 2, 1)), [], 4, 1e-6)
    assert len(launches.asked) == 4


def test_a_launch_depends_on_the_step_through_device_memory_alone(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a graph that was captured once serves every step of the same capacity."""
    case, backend = make(kit)
    launches = Launches(monkeypatch, run=False)
    x, y = [case.input(i, 16) for i in range(3)], [case.output(0, 0, 16)]
    asked = []
    case.add(3, {0: (512, 1)})
    for segments in (singles((0, 1, 2)), [Segment(2, 0.5, 0, 16), Segment(0, 2.0, 3, 9)], [], singles((1,))):
        assert backend.begin(segments, [], capacity=16)
        for group in range(3):
            backend.add_(group, x[group], y)
        asked.append(list(launches.asked))
        launches.asked.clear()
        if 3 not in backend._slots.ranks.nonzero()[1]:
            backend.attach(3, backend.prepare(*case.slots[3]))
    assert all(one == asked[0] for one in asked)


@pytest.mark.parametrize("lack", ["lists", "h"])
def test_a_step_that_is_too_much_for_graphs_runs_in_memory_of_its_own(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    """What graphs know stays where it is, and serves the steps to come."""
    monkeypatch.setattr(triton_bypass, "MIXED_RANK", 8)
    case, backend = make(kit, max_rows=9, max_rank=64 if lack == "lists" else 8)
    if lack == "lists":
        backend._most_fields = 8 * 12
    large = [Segment(0, 1.0, 0, 9), Segment(1, 0.5, 0, 9), Segment(2, 2.0, 0, 7)]
    kept = places(backend)
    for _ in range(2):
        assert backend.begin(singles((1,)), [], capacity=9)
        assert not backend.begin(large, [], capacity=9)
        assert not backend.begin(large, [], capacity=9), "nor when it is asked again"
        kit.check_step(case, backend, large, [], 9, 1e-6)
        assert backend._memory is not None
    kit.check_step(case, backend, singles((1,)), [], 3, 1e-6)
    assert backend._memory is None
    assert kept == places(backend)


def test_there_is_memory_for_the_largest_adapter_on_every_row(kit: ModuleType) -> None:
    case = kit.Case(GROUPS)
    case.add(0, {0: (9, 9), 2: (9,) * 5})
    backend = TritonBypass(case.arena, GROUPS, max_slots=1, max_rows=7, max_rank=9, num_programs=1)
    case.attach_all(backend)
    for segments in (singles((0,) * 7), [Segment(0, 1.0, 0, 7)]):
        assert backend.begin(segments, [], capacity=7)


def test_factors_at_odd_places_run_in_no_graph_that_reads_them_wide(kit: ModuleType) -> None:
    case, backend = make(kit)
    assert backend.begin(singles((0, 1)), [], capacity=4)
    base, layout = case.slots[0]
    backend.attach(3, backend.prepare(base + 1, layout))
    assert not backend.begin(singles((0, 1)), [], capacity=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_in_the_batch_invariant_mode_a_row_does_not_depend_on_its_neighbours(
    kit: ModuleType, dtype: torch.dtype
) -> None:
    case, backend = make(kit, dtype, batch_invariant=True)
    x, y = case.input(0, 100), case.output(0, 0, 100)
    found = []
    for others in ([], [Segment(2, 1.0, 0, 3), Segment(1, 1.0, 5, 9)], [Segment(0, 1.0, 4, 100)], singles((1, 0, 2))):
        got = y.clone()
        backend.begin([Segment(0, 0.5, 3, 4), *others], [])
        backend.add_(0, x, [got, None])
        found.append(got[3])
    assert not torch.equal(found[0], y[3])
    assert all(torch.equal(one, found[0]) for one in found)


def test_scales_and_biases_ride_along(kit: ModuleType) -> None:
    """Slot 0 has them beside its factors, slot 3 alone; a mixture adds them up."""
    case, backend = make(kit)
    scale, bias = (torch.randn(40, device=kit.DEVICE) for _ in range(2))
    start = case.used
    case.arena[start : start + 40], case.arena[start + 64 : start + 104] = scale, bias
    base, layout = case.slots[0]
    rows = {"scales": (start - base, None), "biases": (start + 64 - base, None)}
    backend.attach(0, backend.prepare(base, {0: replace(layout[0], **rows)}))
    backend.attach(3, backend.prepare(start, {0: GroupLayout(0, (0, 0), (0, 0), (None, None), (64, None))}))
    segments = [Segment(0, 1.0, 0, 1), Segment(0, 0.5, 3, 9), Segment(3, 2.0, 5, 9), Segment(3, 1.0, 10, 11)]
    x, y = case.input(0, 12), case.output(0, 0, 12)
    got = y.clone()
    backend.begin(segments, [])
    backend.add_(0, x, [got, None])
    expected = case.reference([s for s in segments if s.slot == 0], 0, 0, x, y)
    for slot, weight, first, last in segments:
        expected[first:last] += weight * (bias + (y[first:last] * scale if slot == 0 else 0))
    kit.assert_close("y", expected, got, 1e-6)
    assert torch.equal(got[9], y[9])
    assert not torch.equal(got[10], y[10])


def test_a_slot_beyond_the_table_is_refused(kit: ModuleType) -> None:
    case, backend = make(kit)
    with pytest.raises(IndexError):
        backend.attach(4, backend.prepare(*case.slots[0]))


def test_many_rows_take_wide_tiles_and_few_rows_thin_ones(kit: ModuleType) -> None:
    _, backend = make(kit, torch.float16)
    few_rows, many_rows, _ = defaults()
    for rows, blocks in ((64, few_rows), (65, many_rows)):
        backend.begin([Segment(0, 1.0, 0, rows)], [])
        assert backend._plan.blocks[0] == blocks


def test_warming_up_launches_every_kernel_and_changes_nothing(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case, backend = make(kit)
    arena, launches = case.arena.clone(), Launches(monkeypatch)
    backend.warm_up()
    assert len(launches.asked) == 2 * 4  # few rows and many, the four launches of all groups
    assert torch.equal(case.arena.nan_to_num(), arena.nan_to_num())
    kit.check_step(case, backend, singles((0, 1)), [], 3, 1e-6)
