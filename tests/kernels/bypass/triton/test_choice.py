import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peftserve.kernels.bypass.layout import Group
from peftserve.kernels.bypass.triton.choice import (
    MARGIN,
    Row,
    Tuning,
    choice_for,
    fits,
    load,
    save,
    table_path,
)
from peftserve.kernels.bypass.triton.designs import candidates, rows_apart, rows_in_tiles
from peftserve.kernels.bypass.triton.model import MEMORY_BOUND_ROWS, Device

H200 = Device(132, 4.36e12)
GROUPS = [
    Group(4096, (4096, 1024, 1024)),
    Group(4096, (14336, 14336)),
    Group(14336, (4096,)),
    Group(9, (4,), gather=True),
]
MEASURED = replace(rows_in_tiles(), rows=32)


@pytest.mark.parametrize("width", [4096, 14336])
def test_without_a_table_rows_decide_the_tiles(width: int) -> None:
    tuning = Tuning(H200, GROUPS)
    for adapters in (1, 16, 64):
        assert tuning.design(adapters, [1] * adapters, 16, width).rows == 1
        assert tuning.design(16 * adapters, [16] * adapters, 64, width).rows == 16
    assert tuning.design(8192, [1024] * 8, 16, width).rows == 64


def test_what_is_chosen_is_the_models_best_of_those_that_fit() -> None:
    tuning = Tuning(H200, GROUPS)
    ranked = tuning.ranked(256, 4, 16, 14336)
    assert [seconds for seconds, _ in ranked] == sorted(seconds for seconds, _ in ranked)
    near = [design for seconds, design in ranked if seconds <= MARGIN * ranked[0][0]]
    assert tuning.design(256, [4] * 64, 16, 14336) == min(near, key=candidates().index)
    assert all(design.rows == 1 or 14336 / design.shrink.part <= design.most_parts for _, design in ranked)
    assert any(design.shrink.part == 256 for _, design in tuning.ranked(256, 4, 16, 4096))


def test_it_is_asked_about_any_step() -> None:
    """Nothing in it, ranks that nobody knows yet, inputs wider than parts, more rows of segments than of the step."""
    tuning = Tuning(H200)
    for rows, segments, rank, width in ((0, [], 0, 64), (1, [1], 512, 100_000), (3, [3, 3, 1], 1, 7)):
        assert replace(tuning.design(rows, segments, rank, width), beside=False) in candidates()
    assert tuning.design(8, [2] * 4, 0, 4096) == tuning.design(8, [2] * 4, 16, 4096)


def test_shrink_runs_beside_products_that_wait_for_memory() -> None:
    tuning = Tuning(H200, GROUPS)
    for rows in (1, MEMORY_BOUND_ROWS, MEMORY_BOUND_ROWS + 1, 2048):
        assert tuning.design(rows, [1] * rows, 16, 4096).beside == (rows <= MEMORY_BOUND_ROWS)


def test_what_was_asked_before_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what rounds to the same."""
    tuning = Tuning(H200, GROUPS)
    first = tuning.design(60, [15] * 4, 13, 4096)
    monkeypatch.setattr(Tuning, "_choose", lambda *_: pytest.fail("computed again"))
    assert tuning.design(64, [16] * 4, 16, 4096) is first
    assert tuning.design(33, [11] * 3, 9, 4096) is first


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [Row(64, 4, 16, 4096, MEASURED), Row(64, 64, 16, 4096, rows_in_tiles())]
    path = save("NVIDIA H100 80GB HBM3", rows, {"torch": "2.11"}, tmp_path)
    assert path == table_path("NVIDIA H100 80GB HBM3", tmp_path)
    assert path.name == "NVIDIA_H100_80GB_HBM3.json"
    assert json.loads(path.read_text())["measured"] == {"torch": "2.11"}
    assert load("NVIDIA H100 80GB HBM3", tmp_path) == rows
    assert load("some other device", tmp_path) == []


def test_the_nearest_row_of_its_width_wins() -> None:
    apart = rows_apart()
    rows = [Row(64, 1, 16, 4096, apart), Row(64, 4, 16, 4096, MEASURED), Row(64, 4, 16, 14336, rows_in_tiles())]
    tuning = Tuning(H200, rows=rows)

    def chosen(*step: int, width: int = 4096) -> object:
        rows, each = step
        return replace(tuning.design(rows, [each] * (rows // each), 64, width), beside=False)

    assert chosen(256, 1) == apart
    assert chosen(16, 16) == replace(MEASURED, beside=False)
    assert chosen(64, 1, width=14336) == rows_in_tiles()
    assert chosen(64, 1, width=999) == apart
    assert set(tuning.all_designs()) == {
        replace(design, beside=beside) for design in (apart, MEASURED, rows_in_tiles()) for beside in (False, True)
    }


def test_one_design_can_be_forced() -> None:
    tuning = Tuning(H200, only=MEASURED)
    assert tuning.design(1, [1], 8, 64) == MEASURED
    assert tuning.all_designs() == [MEASURED]


@pytest.mark.parametrize(
    ("itemsize", "device"),
    [
        (2, Device(108, 1.4e12, shared=163 << 10, early=False, large=False)),
        (4, H200),
        (2, Device(304, 4.3e12, registers=131072, shared=64 << 10, warp_size=64, early=False)),
    ],
    ids=["A100", "float32", "MI300"],
)
def test_there_are_designs_for_every_device(itemsize: int, device: Device) -> None:
    tuning = Tuning(device, GROUPS, itemsize=itemsize)
    for rows, each in ((1, 1), (64, 1), (64, 16), (4096, 4096)):
        design = tuning.design(rows, [each] * (rows // each), 16, 4096)
        assert fits(design, itemsize, device)
        assert design in tuning.all_designs()
        assert device.large or max(design.rows, design.expand.ranks) < 64


def test_a_cpu_is_taken_for_a_gpu_without_a_table() -> None:
    tuning = choice_for(torch.zeros(1), GROUPS)
    assert replace(tuning.design(64, [1] * 64, 16, 4096), beside=False) in candidates()
