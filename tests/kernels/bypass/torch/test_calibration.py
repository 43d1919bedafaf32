import pytest
import torch

from peftserve.kernels.bypass.torch.calibration import costs_of
from peftserve.kernels.bypass.torch.products import PLAIN, WIDE
from peftserve.kernels.bypass.torch.slices import DOTS, ROWWISE, SUMS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_way_that_may_pay_is_measured_once(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    costs = costs_of(torch.zeros(1, dtype=dtype))
    assert torch.get_num_threads() == threads
    wide = set() if dtype is torch.float32 else {WIDE}
    assert costs.shrinks.keys() == {DOTS, PLAIN} | wide
    assert costs.expands.keys() == {SUMS, PLAIN, ROWWISE} | wide
    assert all(min(cost) >= 0 and cost.of(16, 1 << 16) > 0 for half in costs[:2] for cost in half.values())
    assert costs.threads == threads
    assert costs_of(torch.zeros(2, dtype=dtype)).shrinks is costs.shrinks


def test_on_other_devices_nothing_is_measured() -> None:
    costs = costs_of(torch.zeros(1, device="meta"))
    assert (*costs.shrinks, *costs.expands) == (WIDE, WIDE)
