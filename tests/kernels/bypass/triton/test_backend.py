from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftserve.kernels.bypass.layout import Capacity, Group, GroupLayout, Segment, StepKind
from peftserve.kernels.bypass.triton import backend as triton_bypass
from peftserve.kernels.bypass.triton import memory
from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.kernels.bypass.triton.designs import Design, Expand, Shrink
from tests.kernels.bypass.triton.by_rows import ByRows

GROUPS = (Group(300, (40, 17)), Group(20, (33,), gather=True), Group(70, (300, 9, 40, 5, 70)))
RANKS = {0: {0: (8, 24), 1: (3,), 2: (1, 2, 3, 4, 5)}, 1: {0: (0, 1), 2: (0, 0, 7, 0, 16)}, 2: {0: (65, 5)}}
EACH, TILES, FEW = StepKind

DESIGNS = {
    "rows": Design(1, Shrink(16, 128, 128, warps=1), Expand(16, 512, 1, warps=1)),
    "rows, walked": Design(1, Shrink(32, 256, 128, warps=1), Expand(32, 128, 4, warps=1)),
    "tiles of 16, walked": Design(16, Shrink(16, 128, 64, warps=1), Expand(16, 64, 4, warps=1)),
    "tiles of 32, one part": Design(32, Shrink(32, 512, 128, warps=1), Expand(64, 128, 1, warps=1)),
}


class Always:
    def __init__(self, design: Design) -> None:
        self._design = design

    def design(self, *_: Any) -> Design:
        return self._design

    def all_designs(self) -> list[Design]:
        return [self._design]


@pytest.fixture(autouse=True)
def poison(kit: ModuleType) -> Iterator[None]:
    """Let torch fill what it allocates with NaN on a CPU, so that a kernel that reads unwritten memory shows."""
    torch.use_deterministic_algorithms(kit.DEVICE == "cpu")
    yield
    torch.use_deterministic_algorithms(False)


def make(kit: ModuleType, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, TritonBypass]:
    case = kit.Case(GROUPS, dtype)
    for slot, ranks in RANKS.items():
        case.add(slot, ranks)
    backend = TritonBypass(case.arena, GROUPS, max_slots=4, **{"max_rows": 300, "choice": ByRows(), **options})
    case.attach_all(backend)
    spoil(backend)
    return case, backend


def spoil(backend: TritonBypass) -> None:
    """Fill memory that no kernel has written since with values that are no valid number, place or size."""
    backend._fixed.h.fill_(float("nan"))
    backend._fixed.records.fill_(-(1 << 30))


def singles(slots: Sequence[int]) -> list[Segment]:
    return [Segment(slot, 1.0, row, row + 1) for row, slot in enumerate(slots)]


def places(backend: TritonBypass) -> list[int]:
    fixed = backend._fixed
    return [tensor.data_ptr() for tensor in (fixed.step_memory.on_device, fixed.records, fixed.h, backend._slots.table)]


class Launches:
    """Replaces the kernels: records how each was launched, and launches it if told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, run: bool = True) -> None:
        self.asked: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = []
        for name in ("lists", "shrink", "expand"):
            monkeypatch.setattr(triton_bypass, f"{name}_kernel", self._instead(name, run))

    def _instead(self, name: str, run: bool) -> Any:
        kernel, asked = getattr(triton_bypass, f"{name}_kernel"), self.asked

        class Kernel:
            def __getitem__(_, grid: Any) -> Any:
                def launch(*args: Any, **options: Any) -> None:
                    where = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args)
                    asked.append((name, grid, where, options))
                    if run:
                        kernel[grid](*args, **options)

                return launch

        return Kernel()

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.asked]


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_every_design(kit: ModuleType, dtype: torch.dtype, design: Design) -> None:
    """Mixtures, more ranks than a block takes, and rows of one adapter beyond a tile."""
    case, backend = make(kit, dtype, choice=Always(design))
    length = 1 if design.rows == 1 else 20
    segments = [
        Segment(0, 0.5, 0, length),
        Segment(1, 2.0, length, length + 1),
        Segment(2, 1.0, length + 1, length + 3),
        Segment(0, -1.0, length + 2, length + 3),
    ]
    kit.check_step(case, backend, segments, [], length + 4, 1e-6 if dtype is torch.float32 else 2e-3)


work = st.lists(
    st.builds(
        lambda slot, weight, start, length: Segment(slot, weight, start, min(start + length, 300)),
        st.sampled_from(list(RANKS)),
        st.sampled_from([1.0, 0.5, -2.0]),
        st.integers(0, 299),
        st.sampled_from([0, 1, 7, 16, 17, 64, 300]),
    ),
    max_size=4,
)


@given(work)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_work_list(kit: ModuleType, segments: list[Segment]) -> None:
    case, backend = make(kit, choice=Always(DESIGNS["tiles of 32, one part"]))
    kit.check_step(case, backend, segments, segments[:1], 300, 1e-6)


def test_two_launches_a_group_and_one_more_for_every_four_sites(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, backend = make(kit)
    launches = Launches(monkeypatch)
    kit.check_step(case, backend, singles((0, 1)), [], 3, 1e-6)
    assert launches.names == ["lists", "shrink", "expand", "expand", "shrink", "expand", "expand"]
    assert [grid for name, grid, *_ in launches.asked if name == "shrink"] == [(2, 3), (1, 3)], "no block is idle"
    launches.asked.clear()
    kit.check_step(case, backend, singles((2,)), [], 3, 1e-6)  # an adapter on the first group alone
    assert launches.names == ["lists", "shrink", "expand"]
    launches.asked.clear()
    kit.check_step(case, backend, [Segment(2, 1.0, 2, 2)], [], 3, 1e-6)
    assert not launches.asked


def test_a_layer_is_eight_launches(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The linears of a Llama layer, at a small width, whatever adapters run; and one launch for the step."""
    groups = (Group(48, (48, 16, 16)), Group(48, (48,)), Group(48, (128, 128)), Group(128, (48,)))
    case = kit.Case(groups)
    for slot, rank in enumerate((4, 8, 64)):
        case.add(slot, {i: (rank,) * len(group.out_features) for i, group in enumerate(groups)})
    backend = TritonBypass(case.arena, groups, max_slots=3, max_rows=4)
    case.attach_all(backend)
    launches = Launches(monkeypatch)
    kit.check_step(case, backend, singles((0, 1, 2, 1)), [], 4, 1e-6)
    assert launches.names == ["lists", *["shrink", "expand"] * 4]


def test_shrink_may_run_beside_the_base(kit: ModuleType, monkeypatch: pytest.MonkeyPatch, simulated_cuda: Any) -> None:
    """On a second stream where the design says so, and then no launch begins early; nothing is left waiting."""
    design = replace(DESIGNS["rows"], beside=True, early=True)
    case, backend = make(kit, choice=Always(design))
    segments, launches = singles((2, 0)), Launches(monkeypatch)
    x, y = case.input(0, 3), case.output(0, 0, 3)
    backend.begin(segments, [])
    for abandoned in (True, False):
        backend.lead_in()
        backend.start(0, x)
        assert backend._side._forked
        if not abandoned:
            got = y.clone()
            backend.add_(0, x, [got, None])
            assert not backend._side._forked
            kit.assert_close("y", case.reference(segments, 0, 0, x, y), got, 1e-6)
    assert launches.names == ["lists", "shrink", "lists", "shrink", "expand"]
    assert not any(options.get("EARLY") for *_, options in launches.asked)


def test_launches_begin_early_only_when_what_they_read_is_there(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first behind the lists does not, nor does an expand without the shrink that waited for its outputs."""
    case, backend = make(kit, choice=Always(replace(DESIGNS["rows"], early=True)))
    backend._early = True
    launches = Launches(monkeypatch, run=False)
    for _ in range(2):
        kit_step(case, backend, singles((0, 1)))
    early = [(name, options["EARLY"]) for name, _, _, options in launches.asked if name != "lists"]
    step = [("shrink", False), ("expand", True), ("expand", False), ("shrink", True), ("expand", True)]
    assert early == [*step, ("expand", True)] * 2
    assert all(
        options["EARLY"] == options.get("launch_pdl", False) for *_, options in launches.asked if options.get("EARLY")
    )


def kit_step(case: Any, backend: TritonBypass, segments: Sequence[Segment], capacity: Capacity | None = None) -> None:
    assert backend.begin(segments, [], capacity=capacity)
    backend.lead_in()
    for index, group in enumerate(GROUPS):
        backend.add_(index, case.input(index, 2), [case.output(index, i, 2) for i in range(len(group.out_features))])


@pytest.mark.slow
@pytest.mark.parametrize("kind", StepKind)
def test_what_was_captured_serves_any_step_of_its_capacity(
    kit: ModuleType, simulated_cuda: Any, kind: StepKind
) -> None:
    """Also one that has more of everything than its grids have programs, or another kind of rows."""
    case, backend = make(kit, max_rank=64)
    capacity, rows = Capacity(20, kind), 20
    x = [case.input(index, rows) for index in range(3)]
    y = [[case.output(i, p, rows) for p in range(len(g.out_features))] for i, g in enumerate(GROUPS)]
    before = [[each.clone() for each in group] for group in y]

    def forward() -> None:
        backend.lead_in()
        for index in range(len(GROUPS)):
            backend.add_(index, x[index], y[index])

    assert backend.begin([], [], capacity=capacity)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    steps = {
        EACH: [Segment(0, 1.0, 0, 1), Segment(1, 0.5, 1, 3), Segment(2, 2.0, 2, 4)],
        TILES: [Segment(i % 3, 0.5, 2 * i, 2 * i + 2) for i in range(4)],
        FEW: [Segment(2, 0.5, 0, 16), Segment(0, 2.0, 3, 20)],
    }
    case.add(3, {0: (40, 1), 1: (2,)})
    backend.attach(3, backend.prepare(*case.slots[3]))
    for segments in (steps[kind], [Segment(3, 1.0, 5, 6)]):
        for group, old in zip(y, before, strict=True):
            for there, was in zip(group, old, strict=True):
                there.copy_(was)
        spoil(backend)
        assert backend.begin(segments, [], capacity=capacity)
        graph.replay()
        for index in range(len(GROUPS)):
            for position, (was, got) in enumerate(zip(before[index], y[index], strict=True)):
                expected = case.reference(segments, index, position, x[index], was)
                kit.assert_close(f"group {index} site {position}", expected, got, 1e-6)


def test_a_launch_depends_on_the_step_through_device_memory_alone(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a graph that was captured once serves every step of the same capacity."""
    case, backend = make(kit)
    launches = Launches(monkeypatch, run=False)
    asked, capacity = [], Capacity(16, TILES)
    x, y = [case.input(i, 16) for i in range(3)], [case.output(0, 0, 16)]
    case.add(3, {0: (512, 1)})
    for segments in (singles((0, 1, 2)), [Segment(2, 0.5, 0, 16), Segment(0, 2.0, 3, 9)], [], singles((1,))):
        assert backend.begin(segments, [], capacity=capacity)
        backend.lead_in()
        for group in range(3):
            backend.add_(group, x[group], y)
        asked.append(list(launches.asked))
        launches.asked.clear()
        if 3 not in backend._slots.ranks.nonzero()[1]:
            backend.attach(3, backend.prepare(*case.slots[3]))
    assert all(one == asked[0] for one in asked)


def test_the_kind_of_a_step_is_how_its_rows_share_adapters(kit: ModuleType) -> None:
    _, backend = make(kit)
    assert backend.kind_of([]) is EACH
    assert backend.kind_of(singles((0, 1, 2, 0))) is EACH
    assert backend.kind_of([Segment(0, 1.0, 60, 61)]) is EACH, "of many rows, one"
    assert backend.kind_of([Segment(0, 1.0, 0, 64)]) is FEW
    assert backend.kind_of([Segment(i, 1.0, 4 * i, 4 * i + 4) for i in range(16)]) is TILES


@pytest.mark.slow
@pytest.mark.parametrize("lack", ["units", "entries", "h"])
def test_a_step_that_is_too_much_for_graphs_runs_in_memory_of_its_own(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    """What graphs know stays where it is, and serves the steps to come."""
    rooms = {"units": memory.Room(20, 99, 9999), "entries": memory.Room(99, 9, 9999), "h": memory.Room(99, 99, 512)}
    monkeypatch.setattr(triton_bypass, "room_for", lambda *_: rooms[lack])
    case, backend = make(kit, max_rows=9)
    large = [Segment(0, 1.0, 0, 9), Segment(1, 0.5, 0, 9), Segment(2, 2.0, 0, 7)]
    kept, capacity = places(backend), Capacity(9, EACH)
    for _ in range(2):
        assert backend.begin(singles((1,)), [], capacity=capacity)
        assert not backend.begin(large, [], capacity=capacity)
        assert not backend.begin(large, [], capacity=capacity), "nor when it is asked again"
        kit.check_step(case, backend, large, [], 9, 1e-6)
    kit.check_step(case, backend, singles((1,)), [], 3, 1e-6)
    assert backend._own is None
    assert kept == places(backend)


def test_there_is_memory_for_the_largest_adapter_on_every_row(kit: ModuleType) -> None:
    case = kit.Case(GROUPS)
    case.add(0, {0: (9, 9), 2: (9,) * 5})
    backend = TritonBypass(case.arena, GROUPS, max_slots=1, max_rows=7, max_rank=9)
    case.attach_all(backend)
    for segments in (singles((0,) * 7), [Segment(0, 1.0, 0, 7)]):
        assert backend.begin(segments, [], capacity=Capacity(7, EACH))


def test_factors_at_odd_places_run_in_no_graph_that_reads_them_wide(kit: ModuleType) -> None:
    case, backend = make(kit)
    assert backend.begin(singles((0, 1)), [], capacity=Capacity(4, EACH))
    base, layout = case.slots[0]
    backend.attach(3, backend.prepare(base + 1, layout))
    assert not backend.begin(singles((0, 1)), [], capacity=Capacity(4, EACH))


@pytest.mark.parametrize("design", ["rows", "tiles of 16, walked"])
def test_scales_and_biases_are_fused(kit: ModuleType, design: str) -> None:
    """Slot 0 has them beside its factors, slot 3 alone; a mixture adds them up."""
    case, backend = make(kit, choice=Always(DESIGNS[design]))
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
    backend.lead_in()
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


def test_warming_up_launches_every_kernel_and_changes_nothing(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case, backend = make(kit)
    arena, launches = case.arena.clone(), Launches(monkeypatch)
    backend.warm_up()
    found = {(name, options["ROWS"], options.get("GATHER")) for name, _, _, options in launches.asked}
    assert found == {(name, rows, gathers) for rows in (1, 16) for name, gathers in KERNELS}
    assert torch.equal(case.arena.nan_to_num(), arena.nan_to_num())
    kit.check_step(case, backend, singles((0, 1)), [], 3, 1e-6)


KERNELS = (("shrink", None), ("expand", False), ("expand", True))
