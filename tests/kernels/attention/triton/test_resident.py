from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.layout import AttentionLayer, Limits
from peftserve.kernels.attention.triton import resident as attention_occupancy
from peftserve.kernels.attention.triton.backend import TritonAttention
from peftserve.kernels.attention.triton.resident import resident_programs
from peftserve.kernels.device.occupancy import Multiprocessor

LAYER = AttentionLayer(heads=4, kv_heads=2, key_dim=16, value_dim=16, scale=0.3)
WINDOWED = replace(LAYER, window=8)
REGISTERS = {None: 126, 8: 168}  # of a thread, by the layer's window


def compiled(registers: int) -> SimpleNamespace:
    metadata = SimpleNamespace(num_warps=4, shared=38912, target=SimpleNamespace(warp_size=32))
    return SimpleNamespace(metadata=metadata, n_regs=registers, n_spills=0)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate kernels that take REGISTERS in a decode, and a whole multiprocessor in every other form."""

    def warm_up(backend: Any) -> list[SimpleNamespace]:
        return [compiled(REGISTERS[backend._layers[0].window]), compiled(500), compiled(500)]

    monkeypatch.setattr(TritonAttention, "warm_up", warm_up)
    monkeypatch.setattr(attention_occupancy, "multiprocessor", lambda _: Multiprocessor(65536, 228 << 10, 2048))


@pytest.mark.parametrize(("layers", "programs"), [([LAYER], 4), ([LAYER, WINDOWED, LAYER], 3)], ids=["4", "3"])
def test_it_is_what_fits_of_the_largest_decode(
    kit: ModuleType, h100: None, layers: list[AttentionLayer], programs: int
) -> None:
    assert resident_programs(layers, 16, torch.float32, torch.device(kit.DEVICE)) == programs


def test_nothing_is_known_of_kernels_that_are_interpreted(kit: ModuleType) -> None:
    if kit.DEVICE == "cpu":
        assert resident_programs([LAYER], 16, torch.float32, torch.device("cpu")) is None


def test_keys_are_split_for_as_many_as_fit(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more are launched."""
    monkeypatch.setattr("peftserve.kernels.attention.triton.backend.multiprocessors", lambda _: 8)
    for resident, programs in ((None, 32), (3, 24), (9, 32)):
        device = torch.device(kit.DEVICE)
        backend = TritonAttention([LAYER], 16, torch.float32, device, Limits(9, 9, 99), resident=resident)
        narrow, wide = backend._shapes[0]
        assert (narrow.programs, wide.programs) == (programs, 16)
