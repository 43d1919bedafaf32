import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.flash import choice as flash_choice
from peftserve.kernels.attention.flash.calls import Packed, sdpa_flash
from peftserve.kernels.attention.flash.choice import choose_least_rows
from peftserve.kernels.attention.layout import AttentionLayer

LAYER = AttentionLayer(heads=2, kv_heads=1, key_dim=16, value_dim=16, scale=0.3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIZES": (4, 8, 16), "STEP_ROWS": 16, "PAST": 8, "CALLS": 1, "ROUNDS": 2}.items():
        monkeypatch.setattr(flash_choice, name, value)


class Device:
    """A clock by which flash kernels take `cost(rows)` of our own's time, and a flash that records the rows of its
    calls.
    """

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.rows: list[int] = []
        self._cost = cost

    def flash(self, *args: Any) -> torch.Tensor:
        packed: Packed = args[3]
        self.rows.append(packed.most_rows)
        return sdpa_flash(*args)

    def clock(self, run: Callable[[], object]) -> float:
        before = len(self.rows)
        run()
        return self._cost(self.rows[-1]) if len(self.rows) > before else 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("costs", "least"),
    [
        ({4: 0.9, 8: 0.9, 16: 0.9}, 4),
        ({4: 1.1, 8: 0.9, 16: 0.3}, 8),
        ({4: 0.9, 8: 1.1, 16: 0.3}, 16),
        ({4: 0.9, 8: 0.9, 16: 1.1}, None),
    ],
)
def test_it_is_where_flash_kernels_win_from_there_on(
    kit: ModuleType, costs: dict[int, float], least: int | None
) -> None:
    device = Device(costs.__getitem__)
    kinds = [LAYER, LAYER, AttentionLayer(2, 1, 16, 16, 0.3, window=5)]
    found = choose_least_rows(kinds, 4, torch.float32, torch.device(kit.DEVICE), device.flash, device.clock)
    assert found == least
    assert device.rows.count(16) == 2 * 3, "of two kinds: once to compile, and two rounds"


def test_time_is_real_without_a_clock(kit: ModuleType) -> None:
    found = choose_least_rows([LAYER], 4, torch.float32, torch.device(kit.DEVICE), sdpa_flash)
    assert found in (4, 8, 16, None)


def test_kernels_that_fail_are_not_chosen(kit: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no kernel image\nmore of it")

    with caplog.at_level(logging.WARNING):
        assert choose_least_rows([LAYER], 4, torch.float32, torch.device(kit.DEVICE), broken) is None
    assert [record.getMessage() for record in caplog.records] == [
        "prompts run without flash attention: no kernel image"
    ]
