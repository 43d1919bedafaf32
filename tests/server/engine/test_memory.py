"""What pages get when the operator does not say."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peftserve.kernels.attention.layout import AttentionLayer
from peftserve.server.config import EngineConfig
from peftserve.server.engine import memory
from peftserve.server.engine.memory import StateSlots, free_bytes, kv_pages, state_slots
from peftserve.server.wire.launch import engine_environment

CPU = torch.device("cpu")
GIB = 1 << 30
LAYERS = {0: AttentionLayer(2, 2, 8, 8, 1.0), 1: AttentionLayer(2, 1, 8, 4, 1.0)}  # 44 elements a token


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 10 GiB."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * GIB)


def pages(asked: int | None = None, max_tokens: int = 1 << 60) -> int:
    return kv_pages(asked, LAYERS, page_size=16, max_tokens=max_tokens, dtype=torch.bfloat16, device=CPU)


@pytest.mark.parametrize(("asked", "expected"), [(160, 10), (175, 10), (16, 1), (1, 1)])
def test_the_cache_is_as_asked(asked: int, expected: int) -> None:
    assert pages(asked) == expected


def test_the_cache_fits_the_free_memory(free: None) -> None:
    assert pages() == int(10 * GIB * 0.3) // (16 * 2 * 44)


def test_the_cache_is_no_larger_than_all_sequences_need(free: None) -> None:
    assert pages(max_tokens=33) == 3


def test_a_cache_has_at_least_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert pages() == 1


@pytest.mark.parametrize(("limit", "within"), [("max\n", False), ("1048576\n", True)])
def test_a_container_counts(limit: str, within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "memory.max"
    file.write_text(limit)
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", file)
    assert (free_bytes(CPU) == 1 << 20) == within
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", tmp_path / "absent")
    assert free_bytes(CPU) > 1 << 20


def test_what_the_c_library_keeps_can_be_given_back() -> None:
    """Under the engine process's settings, a block that is freed stays the process's until then."""
    script = """
import ctypes, os, resource
from peftserve.server.wire.launch import engine_environment
from peftserve.server.engine.memory import give_back_free_memory
size = 24 << 20
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
block = ctypes.create_string_buffer(size)
ctypes.memset(block, 1, size)
del block
before = held()
give_back_free_memory()
print(before - held() > size // 2)
"""
    run = subprocess.run([sys.executable, "-c", script], env=engine_environment(), capture_output=True, text=True)
    assert run.stdout.strip() == "True", run.stderr


@pytest.mark.parametrize(
    ("size", "caching", "expected"),
    [
        (0, True, StateSlots(8, 0)),
        (GIB // 100, True, StateSlots(8, 8)),
        (GIB // 100, False, StateSlots(8, 0)),
        (GIB // 4, True, StateSlots(8, 4)),
        (GIB, True, StateSlots(3, 0)),
        (20 * GIB, True, StateSlots(1, 0)),
    ],
)
def test_states_of_all_sequences_come_before_snapshots(
    free: None, size: int, caching: bool, expected: StateSlots
) -> None:
    config = EngineConfig(model="model", max_running=8, prefix_caching=caching)
    assert state_slots(config, size, CPU) == expected
