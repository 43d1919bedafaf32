"""Arrays to a device and tensors back, each way in one copy."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from peftserve.server.engine import staging

ARRAYS = [
    np.arange(7, dtype=np.int64),
    np.array([0.5, 1.5, -2.0], np.float32),
    np.zeros(0, np.int64),
    np.array([True, False, True]),
    np.arange(6, dtype=np.float64).reshape(3, 2)[:, 1],
    np.arange(12, dtype=np.int32).reshape(2, 2, 3),
]


@pytest.fixture(params=["host", "device"])
def there(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """As a device, without a GPU, the CPU that is taken for one."""
    if request.param == "host":
        return torch.device("cpu")
    if device == "cpu":
        monkeypatch.setattr(staging, "is_host", lambda device: False)
        monkeypatch.setattr(staging, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
        monkeypatch.setattr(staging, "_event", FakeEvent)
    return torch.device(device)


class FakeEvent:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronize(self) -> None:
        pass


def same(one: Any, other: Any) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all())


@pytest.mark.parametrize("groups", [[ARRAYS], [ARRAYS[:2], [], ARRAYS[2:]], [[], []], [ARRAYS[2:3]]])
def test_there_and_back(there: torch.device, groups: list[list[Any]]) -> None:
    tensors = staging.to_device(groups, there)
    assert [len(group) for group in tensors] == [len(group) for group in groups]
    flat = [tensor for group in tensors for tensor in group]
    assert all(tensor.device.type == there.type for tensor in flat)
    back = staging.Returning(flat).result()
    assert all(tensor.device.type == "cpu" for tensor in back)
    assert all(same(tensor.numpy(), array) for tensor, array in zip(back, chain.from_iterable(groups), strict=True))


def test_what_comes_back_is_of_its_own_time(there: torch.device) -> None:
    """On a device, what is written later does not show."""
    ((tensor,),) = staging.to_device([[np.zeros(3, np.float32)]], there)
    returning = staging.Returning([tensor])
    if not staging.is_host(there):
        tensor += 1
    assert returning.result()[0].tolist() == [0.0] * 3


def test_on_a_cpu_nothing_is_copied() -> None:
    array = np.zeros(3)
    ((tensor,),) = staging.to_device([[array]], torch.device("cpu"))
    array[1] = 5.0
    assert staging.Returning([tensor]).result()[0] is tensor
    assert tensor.tolist() == [0.0, 5.0, 0.0]
