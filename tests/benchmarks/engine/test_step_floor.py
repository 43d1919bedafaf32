from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from benchmarks.kernels.roofline import Roofline

Script = Callable[[str], ModuleType]
LAYER = 2 * (4096 * (6144 + 4096 + 28672) + 14336 * 4096)  # bytes of a layer's weights in bf16
HEAD = 2 * 4096 * 128256


@pytest.fixture
def floor(script: Script) -> Callable[[float], object]:
    config = script("models.llama").make_config("8b", 8)
    return lambda peak: script("engine.step_floor").StepFloor(config, torch.bfloat16, Roofline(3e12, peak))


def test_a_small_step_is_its_bytes(floor: Callable[[float], object]) -> None:
    found = floor(float("inf"))([(1, 511)] * 16, 4)
    assert found.products == pytest.approx((8 * LAYER + HEAD) / 3e12)
    assert found.attention == pytest.approx(16 * 512 * 8 * 2 * 2 * 8 * 128 / 3e12)
    elements = 16 * (3 * 4096 + 6144 + 2 * 4096 + 2 * 4096 + 28672 + 14336 + 4096)
    assert found.adapters == pytest.approx(8 * 4 * 2 * elements / 3e12)
    assert found.whole == pytest.approx(found.products + found.attention + found.adapters)


def test_each_product_is_bound_by_the_larger_of_both(floor: Callable[[float], object]) -> None:
    """At 257 rows and this peak, arithmetic takes 257/256 of the time that the bytes take."""
    peak = 256 * 3e12
    assert floor(peak)([(1, 0)] * 256, 0).products == pytest.approx((8 * LAYER + HEAD) / 3e12)
    assert floor(peak)([(1, 0)] * 257, 0).products == pytest.approx(257 / 256 * (8 * LAYER + HEAD) / 3e12)


def test_prompts_need_the_head_for_their_last_rows_and_see_what_is_before_them(
    floor: Callable[[float], object],
) -> None:
    found = floor(7.7e14)([(512, 0)] * 16, 0)
    assert found.products == pytest.approx(8 * 8192 * LAYER / 7.7e14 + HEAD / 3e12)
    pairs = 16 * 512 * 513 / 2
    assert found.attention == pytest.approx(8 * max(4 * pairs * 4096 / 7.7e14, 16 * 512 * 2 * 2 * 1024 / 3e12))
    assert found.adapters == 0
