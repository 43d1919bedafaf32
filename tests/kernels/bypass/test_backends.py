"""The contract of backends, tested on each backend that this machine can run."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.bypass.factory import make_bypass_backend
from peftserve.kernels.bypass.layout import BypassBackend, Group, RowSet, Segment
from peftserve.kernels.bypass.torch.backend import TorchBypass
from peftserve.kernels.bypass.triton.backend import TritonBypass

GROUPS = (
    Group(60, (60, 20, 20)),
    Group(60, (64,)),
    Group(61, (17,)),
    Group(33, (60,), gather=True),
    Group(60, (49,), rows=RowSet.LOGITS),
)
ALL = {index: (8,) * len(group.out_features) for index, group in enumerate(GROUPS)}
ROWS = 63
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


@pytest.fixture(params=["torch", pytest.param("triton", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(
    kind: str, kit: ModuleType, dtype: torch.dtype = torch.float32, alignment: int = 32
) -> tuple[Any, BypassBackend]:
    """Five adapters: one on everything, one on parts of groups, one of ranks 2 and 7, one site only, and rank 512."""
    case = kit.Case(GROUPS, dtype, alignment=alignment)
    case.add(0, ALL)
    case.add(1, {0: (1, 0, 3), 1: (64,), 4: (5,)})
    case.add(2, {1: (2,), 2: (2,), 3: (7,)})
    case.add(3, {0: (0, 16, 0)})
    case.add(4, {1: (512,)})
    backend: BypassBackend
    if kind == "torch":
        backend = TorchBypass(case.arena, GROUPS)
    else:
        backend = TritonBypass(case.arena, GROUPS, max_slots=5, max_rows=ROWS)
    case.attach_all(backend)
    return case, backend


def in_a_row(slots: Sequence[int], length: int) -> list[Segment]:
    """Return one segment after the other, as many as fit in the rows."""
    return [Segment(slot, 1.0, i * length, (i + 1) * length) for i, slot in enumerate(slots[: ROWS // length])]


def test_every_popularity(kind: str, kit: ModuleType, popularity: Sequence[int]) -> None:
    case, backend = make(kind, kit)
    segments = in_a_row(popularity, 1)
    kit.check_step(case, backend, segments, segments[1:3], ROWS, 1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 3, 21])
def test_every_type_and_length(kind: str, kit: ModuleType, dtype: torch.dtype, length: int) -> None:
    if kind == "triton" and dtype is torch.bfloat16 and length > 1 and kit.DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices as if they were integers")
    case, backend = make(kind, kit, dtype)
    segments = in_a_row((4, 0, 2, 1, 3), length)
    kit.check_step(case, backend, segments, segments[1:3], ROWS, TOLERANCE[dtype])


def test_factors_at_odd_offsets(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit, alignment=1)
    segments = in_a_row((0, 1, 2, 3, 4), 2)
    kit.check_step(case, backend, segments, segments, ROWS, 1e-6)


def test_mixtures_add_up_on_the_rows_they_share(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit)
    segments = [
        Segment(0, 0.7, 2, 5),
        Segment(1, 0.3, 2, 5),
        Segment(2, -1.5, 4, 40),
        Segment(4, 0.25, 3, 63),
        Segment(0, 0.5, 4, 40),
    ]
    kit.check_step(case, backend, segments, segments, ROWS, 1e-6)


def test_empty_segments_and_rows_without_an_adapter(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit)
    segments = [Segment(0, 1.0, 0, 0), Segment(1, 1.0, 7, 9), Segment(2, 1.0, 9, 9), Segment(0, 1.0, 50, 51)]
    kit.check_step(case, backend, segments, [], ROWS, 1e-6)


def test_nothing_to_do(kind: str, kit: ModuleType) -> None:
    _, backend = make(kind, kit)
    y = torch.full((ROWS, 64), float("nan"), device=kit.DEVICE)
    for segments in ([], [Segment(0, 1.0, 5, 5)]):
        backend.begin(segments, segments)
        backend.lead_in()
        backend.add_(1, torch.ones(ROWS, 60, device=kit.DEVICE), [y])
        assert y.isnan().all()


def test_logits_rows_are_not_token_rows(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit)
    kit.check_step(case, backend, [Segment(0, 1.0, 0, 60)], [Segment(1, 1.0, 3, 4), Segment(0, 1.0, 4, 6)], ROWS, 1e-6)


def test_steps_of_different_sizes_follow_each_other(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit)
    for rows, segments in [(63, in_a_row((0, 1), 31)), (4, in_a_row((2, 0), 2)), (4, in_a_row((2, 0), 2)), (1, [])]:
        kit.check_step(case, backend, segments, segments[:1], rows, 1e-6)


def test_a_slot_is_detached_and_attached_again(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit)
    segments = in_a_row((0, 1, 0), 4)
    kit.check_step(case, backend, segments, segments, ROWS, 1e-6)
    backend.detach(1)
    case.add(1, {0: (0, 0, 33), 2: (3,)})
    backend.attach(1, backend.prepare(*case.slots[1]))
    kit.check_step(case, backend, segments, segments, ROWS, 1e-6)
    backend.detach(0)
    backend.detach(1)
    kit.check_step(case, backend, [Segment(2, 1.0, 0, 3)], [], ROWS, 1e-6)


def test_outputs_may_be_left_out(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit)
    segments = in_a_row((0, 1), 3)
    backend.begin(segments, [])
    backend.lead_in()
    x, y = case.input(0, ROWS), [case.output(0, position, ROWS) for position in range(3)]
    got = y[1].clone()
    backend.add_(0, x, [None, got, None])
    kit.assert_close("the second site", case.reference(segments, 0, 1, x, y[1]), got, 1e-6)


def test_outputs_may_be_parts_of_wider_ones(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit)
    segments = in_a_row((0, 1), 3)
    backend.begin(segments, [])
    backend.lead_in()
    x, wide = case.input(0, ROWS), case.output(0, 0, ROWS).repeat(1, 2)
    got = wide.clone()
    parts = [got[:, :60], got[:, 60:80], got[:, 80:100]]
    backend.add_(0, x, parts)
    for position, (start, end) in enumerate(((0, 60), (60, 80), (80, 100))):
        y = wide[:, start:end]
        kit.assert_close(f"site {position}", case.reference(segments, 0, position, x, y), parts[position], 1e-6)
    assert torch.equal(got[:, 100:], wide[:, 100:])


def test_the_same_step_twice_gives_the_same_bits(kind: str, kit: ModuleType) -> None:
    case, backend = make(kind, kit)
    x, y = case.input(0, ROWS), case.output(0, 1, ROWS)
    found = []
    for _ in range(2):
        got = y.clone()
        backend.begin([Segment(0, 0.5, 0, 9), Segment(3, 0.5, 0, 9), Segment(3, 1.0, 20, 60)], [])
        backend.lead_in()
        backend.add_(0, x, [None, got, None])
        found.append(got)
    assert torch.equal(*found)


def test_the_arena_decides_the_backend(kit: ModuleType) -> None:
    case = kit.Case(GROUPS, device="cpu")
    assert isinstance(make_bypass_backend(case.arena, GROUPS, max_rows=1), TorchBypass)
