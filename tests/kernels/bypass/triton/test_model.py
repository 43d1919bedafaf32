"""Properties of the formula for any constants. That they explain what was measured: tests/benchmarks/kernels."""

from dataclasses import replace

import pytest

from peftserve.kernels.bypass.layout import Group
from peftserve.kernels.bypass.triton.designs import Design, rows_apart, rows_in_tiles
from peftserve.kernels.bypass.triton.model import (
    FITTED,
    Device,
    Launch,
    Room,
    Share,
    expand,
    launch_seconds,
    seconds,
    shrink,
)

GROUP = Group(4096, (4096, 1024, 1024))
DEVICE = Device(132, 4e12)
DESIGNS = [rows_apart(), rows_in_tiles()]


@pytest.mark.parametrize("design", DESIGNS)
def test_bytes_and_blocks_are_those_of_the_step(design: Design) -> None:
    """40 adapters of rank 16 and 10 of rank 8, which take a block of ranks each all the same."""
    shares = [Share(16, 1, 40), Share(8, 1, 10)]
    factors = (16 * 40 + 8 * 10) * 2
    first, second = shrink(design, GROUP, shares, DEVICE), expand(design, GROUP, shares, DEVICE)
    assert first.memory == factors * 3 * 4096
    assert second.memory == factors * sum(GROUP.out_features)
    assert first.blocks == (40 * 3 + 10 * 2) * (4096 // design.shrink.part)
    assert second.blocks == 50 * sum(GROUP.out_features) // (design.expand.columns * design.expand.walked)
    assert second.outputs == 2 * 50 * sum(GROUP.out_features) * 2
    assert first.idle == second.idle == 0


def test_factors_of_further_tiles_come_from_the_cache() -> None:
    design = rows_in_tiles()
    one, three = (shrink(design, GROUP, [Share(16, rows, 2)], DEVICE) for rows in (16, 48))
    assert one.memory == three.memory
    assert three.cached - 3 * one.cached == 2 * 2 * 16 * 3 * 4096 * 2


def test_outputs_that_no_cache_holds_come_from_memory() -> None:
    small, large = (expand(rows_in_tiles(), GROUP, [Share(16, rows)], DEVICE) for rows in (64, 8192))
    assert small.outputs > 0
    assert large.outputs == 0
    assert large.memory - small.memory == 2 * 8192 * sum(GROUP.out_features) * 2


@pytest.mark.parametrize("design", DESIGNS)
def test_idle_blocks_late_launches_and_slow_memory_cost_time(design: Design) -> None:
    shares = [Share(16, 1, 16)]
    found = seconds(design, GROUP, shares, DEVICE)
    assert seconds(design, GROUP, shares, DEVICE, room=Room(256, 3 * 64)) > found
    assert seconds(replace(design, early=not design.early), GROUP, shares, DEVICE) != found
    assert seconds(design, GROUP, shares, DEVICE._replace(bandwidth=1e12)) > found
    late = DEVICE._replace(early=False)
    assert seconds(replace(design, early=True), GROUP, shares, late) == seconds(
        replace(design, early=False), GROUP, shares, late
    )


def test_a_second_stream_hides_shrink_while_the_base_waits_for_memory() -> None:
    behind = rows_in_tiles()
    beside = replace(behind, beside=True)
    for rows, adapters, gains in ((1, 16, True), (16, 16, False)):
        shares = [Share(16, rows, adapters)]
        assert (seconds(beside, GROUP, shares, DEVICE) < seconds(behind, GROUP, shares, DEVICE)) == gains


def test_chains_of_more_blocks_than_there_is_room_for_follow_each_other() -> None:
    launch = Launch(blocks=132 * 4, idle=0, resident=4, chain=2e-6, memory=0, cached=0)
    assert launch_seconds(launch, DEVICE) == pytest.approx(FITTED.launch + 2e-6)
    more = launch._replace(blocks=132 * 12)
    assert launch_seconds(more, DEVICE) == pytest.approx(FITTED.launch + 6e-6)
    assert launch_seconds(launch._replace(blocks=132), DEVICE, early=True) < FITTED.launch + 2e-6
    assert launch_seconds(more, DEVICE, early=True) == launch_seconds(more, DEVICE)


def test_a_block_too_large_for_two_still_runs() -> None:
    wide = replace(rows_in_tiles(), rows=64)
    huge = replace(wide, expand=replace(wide.expand, columns=256, stages=5, warps=8))
    assert expand(huge, GROUP, [Share(64, 64)], DEVICE).resident == 1
