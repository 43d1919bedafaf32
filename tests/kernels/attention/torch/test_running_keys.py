"""Contiguous keys and values from step to step, as paged attention uses them."""

from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.layout import AttentionLayer, Span
from peftserve.kernels.attention.torch.backend import TorchAttention


@pytest.fixture(autouse=True)
def on_the_cpu(kit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the CPU's backend, also on a machine with a GPU."""
    monkeypatch.setattr(kit, "DEVICE", "cpu")


def make(kit: ModuleType, layer: AttentionLayer, spare_bytes: int = 1 << 20) -> tuple[Any, TorchAttention]:
    case = kit.AttentionCase(layer)
    for cache in (case.keys, case.values):
        cache.nan_to_num_()
    return case, TorchAttention([layer], case.page_size, torch.float32, torch.device(kit.DEVICE), spare_bytes)


@pytest.mark.parametrize("layer", [AttentionLayer(4, 2, 16, 8, 0.3), AttentionLayer(4, 4, 16, 16, 0.3, window=9)])
def test_sequences_that_come_go_and_go_on(kit: ModuleType, layer: AttentionLayer) -> None:
    """Members and orders change, and pages and the room for copies end; each step equals one from the pages."""
    case, backend = make(kit, layer)
    chance = Random(0)
    there = case.spans([(1, context) for context in (3, 15, 30, 31, 40, 60)])
    pages = [[*span.pages, *(page for other in case.spans([(1, 100)]) for page in other.pages)] for span in there]
    totals = [span.total for span in there]
    members = [0, 1, 2]
    copied = 0
    for step in range(70):
        if step % 9 == 8:
            members = chance.sample(range(6), chance.randint(1, 6))
        elif step % 9 == 4:
            chance.shuffle(members)
        spans = [Span(row, 1, totals[i], pages[i]) for row, i in enumerate(members)]
        if step % 9 == 6:
            spans.append(case.spans([(5, 7)])[0]._replace(row=len(members)))
        kit.check_attention(case, backend, spans, None, 1e-5)
        copied += sum(running._grows for running in backend._running.values())
        for i in members:
            totals[i] += 1
    assert copied > 30, "most steps go on with what lies there"


def test_others_on_the_pages_of_one_that_has_ended_are_not_taken_for_it(kit: ModuleType) -> None:
    case, backend = make(kit, AttentionLayer(2, 2, 16, 16, 0.3))
    (span,) = case.spans([(1, 20)])
    kit.check_attention(case, backend, [span], None, 1e-5)
    kit.check_attention(case, backend, [Span(0, 21, 21, span.pages)], None, 1e-5)
    kit.check_attention(case, backend, [Span(0, 1, 22, span.pages)], None, 1e-5)


def test_no_more_memory_is_taken_than_there_is_to_spare(kit: ModuleType) -> None:
    """One sequence of 64 positions of 64 numbers, in two groups of lengths."""
    case, backend = make(kit, AttentionLayer(2, 2, 16, 16, 0.3), spare_bytes=64 * 64 * 4)
    kit.check_attention(case, backend, case.spans([(1, 20), (1, 300)]), None, 1e-5)
    assert [running.num_positions for running in backend._running.values()] == [64]


def test_another_sequence_may_have_the_same_pages_at_once(kit: ModuleType) -> None:
    """It begins with keys and values of its adapter, right after one of the same length has ended."""
    case, backend = make(kit, AttentionLayer(2, 2, 16, 16, 0.3))
    (ended,) = case.spans([(1, 20)])
    kit.check_attention(case, backend, [ended], None, 1e-5)
    for cache in (case.keys, case.values):
        cache[ended.pages] += 1.0
    kit.check_attention(case, backend, [Span(0, 1, 22, list(ended.pages))], None, 1e-5)
