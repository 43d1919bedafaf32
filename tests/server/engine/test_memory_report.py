"""The block that says at start how memory is divided."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peftserve.kernels.bypass.layout import Group
from peftserve.server.engine.adapters.sizing import lora_bytes
from peftserve.server.engine.memory_report import MemoryReport, fitting_loras, show_bytes, storage_bytes

GIB, MIB = 1 << 30, 1 << 20
REPORT = MemoryReport(
    device="cuda:0",
    base=15 * GIB,
    packed=0,
    kv=41 * GIB,
    kv_pages=20_000,
    page_size=16,
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
        "  adapters                   6.0 GiB  32 at once; LoRAs at all linears: 32 of rank 16, 2 of rank 512",
        "  bypass scratch           120.0 MiB  of the kernels",
        "  free                       4.0 GiB  for steps, and for others",
        "  adapters off the device    1.0 GiB  in host memory, at most",
    ]
    assert "packed weights" in str(replace(REPORT, packed=MIB))


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
