import pytest
import torch

from peftserve.kernels.bypass.torch.calibration import costs_of
from peftserve.kernels.bypass.torch.products import PLAIN, WIDE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_way_that_may_pay_is_measured_once(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    costs = costs_of(torch.zeros(1, dtype=dtype))
    assert torch.get_num_threads() == threads
    wide = set() if dtype is torch.float32 else {WIDE}
    assert costs.shrinks.keys() == costs.expands.keys() == {PLAIN} | wide
    assert costs.loop is not None
    measured = (*costs.shrinks.values(), *costs.expands.values(), costs.loop)
    assert all(min(cost) >= 0 and cost.of(16, 1 << 16) > 0 for cost in measured)
    assert costs.threads == threads
    assert costs_of(torch.zeros(2, dtype=dtype)).shrinks is costs.shrinks


def test_on_other_devices_nothing_is_measured() -> None:
    costs = costs_of(torch.zeros(1, device="meta"))
    assert (*costs.shrinks, *costs.expands, costs.loop) == (WIDE, WIDE, None)
