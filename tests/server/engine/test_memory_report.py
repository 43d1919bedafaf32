"""The block that says at start how memory is divided."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.kernels.bypass.layout import Group
from peftserve.server.engine.adapters.sizing import lora_bytes
from peftserve.server.engine.memory import StateSlots
from peftserve.server.engine.memory_report import MemoryReport, fitting_loras, model_bytes, show_bytes, storage_bytes

GIB, MIB = 1 << 30, 1 << 20
REPORT = MemoryReport(
    device="cuda:0",
    base=15 * GIB,
    packed=0,
    kv=41 * GIB,
    copied=0,
    kv_pages=20_000,
    page_size=16,
    states=2 * GIB,
    slots=StateSlots(256, 64),
    arena=6 * GIB,
    fitting=[(16, 32), (512, 2)],
    max_loras=32,
    scratch=120 * MIB,
    host=GIB,
    free=4 * GIB,
)


def test_the_block_has_a_line_for_all_that_takes_memory() -> None:
    assert str(REPORT).splitlines() == [
        "Memory on cuda:0",
        "  base model                15.0 GiB",
        "  KV cache                  41.0 GiB  320000 tokens in 20000 pages",
        "  states                     2.0 GiB  of 256 sequences and 64 snapshots",
        "  adapters                   6.0 GiB  32 at once; LoRAs at all linears: 32 of rank 16, 2 of rank 512",
        "  bypass scratch           120.0 MiB  of the kernels",
        "  free                       4.0 GiB  for steps, and for others",
        "  adapters off the device    1.0 GiB  in host memory, at most",
    ]
    assert "packed weights" in str(replace(REPORT, packed=MIB))
    assert "  copied keys, values        1.0 MiB  of seq" in str(replace(REPORT, copied=MIB))


def test_how_many_loras_fit() -> None:
    groups = [Group(in_features=64, out_features=(32, 32))]
    one = {rank: lora_bytes(groups, rank, torch.float32) for rank in (16, 64, 100)}
    expected = [(16, one[100] * 10 // one[16]), (64, one[100] * 10 // one[64]), (100, 10)]
    assert fitting_loras(one[100] * 10, groups, 100, 1000, torch.float32) == expected
    assert fitting_loras(one[100] * 10, groups, 64, 4, torch.float32) == [(16, 4), (64, 4)]
    assert fitting_loras(1 << 20, [], 64, 4, torch.float32) == []


@pytest.mark.parametrize(("size", "shown"), [(512, "0.5 KiB"), (999 << 10, "999.0 KiB"), (1000 << 20, "1.0 GiB")])
def test_sizes(size: int, shown: str) -> None:
    assert show_bytes(size) == shown


def test_memory_that_tensors_share_counts_once() -> None:
    whole = torch.zeros(10)
    assert storage_bytes([whole, whole[:3], torch.zeros(2, dtype=torch.int8)]) == 42


class _State:
    """Scales that a package keeps beside the codes, in an object of its own."""

    def __init__(self) -> None:
        self.scales = torch.zeros(5)


def test_what_quantised_modules_keep_beside_their_parameters_counts() -> None:
    linear = nn.Linear(4, 4, bias=False)
    linear.weight = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    linear.state = _State()  # type: ignore[assignment]
    assert model_bytes(nn.Sequential(linear, nn.LayerNorm(4))) == 8 + 5 * 4 + 2 * 4 * 4


def test_a_4_bit_linear_takes_half_a_byte_a_weight_and_its_scales() -> None:
    bnb: Any = pytest.importorskip("bitsandbytes")
    linear = bnb.nn.Linear4bit(512, 256, bias=False, quant_type="nf4", compress_statistics=True)
    linear.load_state_dict(nn.Linear(512, 256, bias=False).state_dict())
    weights = 512 * 256
    assert model_bytes(linear.to("cpu")) == pytest.approx(weights * (0.5 + 1 / 64), rel=0.05)


def test_an_engine_says_what_it_has_taken(make_bench: Callable[..., Any], adapters: dict[str, Path]) -> None:
    report = make_bench(kv_cache_tokens=1024, page_size=4, adapter_memory=1 << 21, max_lora_rank=32).engine.memory
    assert (report.kv_pages, report.page_size, report.arena, report.scratch) == (256, 4, 1 << 21, 0)
    assert report.base > 0
    assert report.free > 0
    assert [rank for rank, _ in report.fitting] == [16, 32]


def test_tiny_models_get_a_tiny_arena(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(adapter_memory=None, max_loras=4)
    rank, fitting = bench.engine.memory.fitting[-1]
    assert (rank, fitting) == (512, 4)
    assert bench.engine.memory.arena <= 64 << 20


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a build of torch without oneDNN")
def test_weights_in_the_order_of_a_library_count_by_their_numbers() -> None:
    packed = torch.ones(8, 16).to_mkldnn()
    assert storage_bytes([packed, packed]) == 8 * 16 * 4
