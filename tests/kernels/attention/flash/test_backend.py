"""Two kernels in one step, against the formulas. SDPA stands in for flash kernels, which CPUs lack."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.flash.backend import MixedAttention
from peftserve.kernels.attention.flash.calls import Packed, sdpa_flash, supports
from peftserve.kernels.attention.layout import AttentionLayer, Limits
from peftserve.kernels.attention.triton.backend import TritonAttention

TOLERANCE = 3e-6
LAYER = AttentionLayer(heads=4, kv_heads=2, key_dim=16, value_dim=16, scale=0.3)
LIMITS = Limits(rows=120, spans=12, positions=400)
LEAST_ROWS = 6


class CountingFlash:
    """Records of each call the rows of its longest sequence, and its keys in all."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, layer: AttentionLayer
    ) -> torch.Tensor:
        self.calls.append((packed.most_rows, len(key)))
        return sdpa_flash(query, key, value, packed, layer)


def make(
    kit: ModuleType, *layers: AttentionLayer, most_keys: int = 400, dtype: torch.dtype = torch.float32
) -> tuple[Any, MixedAttention, CountingFlash]:
    case, flash = kit.AttentionCase(layers[0], dtype=dtype), CountingFlash()
    device, assisted = torch.device(kit.DEVICE), [index for index, layer in enumerate(layers) if supports(layer)]
    own = TritonAttention(layers, case.page_size, dtype, device, LIMITS, assisted=assisted, num_programs=8)
    backend = MixedAttention(
        own,
        flash,
        layers,
        assisted,
        case.page_size,
        dtype,
        device,
        least_rows=LEAST_ROWS,
        most_keys=most_keys,
    )
    return case, backend, flash


@pytest.mark.parametrize("window", [None, 1, 20, 300])
@pytest.mark.parametrize(
    ("sequences", "called"),
    [
        ([(20, 0), (7, 0)], (20, 27)),
        ([(1, 30), (20, 0), (3, 9), (7, 0), (1, 0)], (20, 32)),
        ([(9, 33)], (9, 42)),
        ([(1, 90), (9, 33), (2, 5), (6, 0), (5, 40)], (9, 48)),
        ([(1, 90), (5, 40)], None),
    ],
    ids=["prompts", "prompts beside decodes", "a chunk", "chunks, prompts and decodes", "none is long"],
)
def test_any_step(
    kit: ModuleType, sequences: list[tuple[int, int]], called: tuple[int, int] | None, window: int | None
) -> None:
    case, backend, flash = make(kit, replace(LAYER, window=window))
    spans = case.spans(sequences)
    kit.check_attention(case, backend, spans, None, TOLERANCE)
    assert len(flash.calls) == (called is not None)
    if called and not (window and any(context for _, context in sequences)):
        assert flash.calls == [called]
    elif called:
        assert flash.calls[0][1] <= called[1]


def test_more_query_heads_and_half_precision(kit: ModuleType) -> None:
    layer = AttentionLayer(12, 2, 64, 64, 0.1)
    case, backend, flash = make(kit, layer, dtype=torch.float16)
    kit.check_attention(case, backend, case.spans([(1, 30), (20, 11), (6, 0)]), None, 2e-3)
    assert flash.calls


def test_keys_for_which_there_is_no_room_are_our_own_kernels(kit: ModuleType) -> None:
    case, backend, flash = make(kit, LAYER, most_keys=50)
    kit.check_attention(case, backend, case.spans([(9, 33), (9, 0), (8, 0)]), None, TOLERANCE)
    assert flash.calls == [(9, 50)]
    kit.check_attention(case, backend, case.spans([(9, 90)]), None, TOLERANCE)
    assert len(flash.calls) == 1


def test_decodes_and_graphs_are_our_own_kernels(kit: ModuleType) -> None:
    case, backend, flash = make(kit, LAYER)
    kit.check_attention(case, backend, case.spans([(1, 40), (1, 3)]), 9, TOLERANCE)
    kit.check_attention(case, backend, case.spans([(1, 40), (1, 3)]), None, TOLERANCE)
    assert not flash.calls


@pytest.mark.parametrize("change", [{"softcap": 2.0}, {"sinks": True}, {"window": 7, "restarts": True}], ids=str)
def test_a_layer_that_flash_kernels_do_not_know_runs_beside_one_that_they_do(
    kit: ModuleType, change: dict[str, Any]
) -> None:
    """Alike in shape, so that they would share a plan."""
    other = replace(LAYER, **change)
    case, backend, flash = make(kit, LAYER, other)
    spans = case.spans([(1, 20), (12, 9)])
    query, key, value = case.inputs(13)
    backend.begin(spans)
    for index, layer in enumerate((LAYER, other)):
        sinks = torch.linspace(-1, 1, layer.heads) if layer.sinks else None
        alone = TritonAttention([layer], 16, torch.float32, torch.device(kit.DEVICE), LIMITS, num_programs=8)
        alone.begin(spans)
        wanted = alone.attend(0, query, key, value, case.keys.clone(), case.values.clone(), sinks)
        got = backend.attend(index, query, key, value, case.keys, case.values, sinks)
        kit.assert_close("attention", wanted.double(), got, TOLERANCE)
    assert len(flash.calls) == 1


def test_sequences_share_pages_that_the_step_fills(kit: ModuleType) -> None:
    case, backend, flash = make(kit, LAYER)
    first, second = case.spans([(16, 0), (7, 16)])
    second = second._replace(row=0, pages=[first.pages[0], *second.pages[1:]])
    kit.check_attention(case, backend, [second, first._replace(row=7)], None, TOLERANCE)
    assert flash.calls == [(16, 39)]


def test_pages_before_the_window_are_not_read(kit: ModuleType) -> None:
    case, backend, flash = make(kit, replace(LAYER, window=20))
    (span,) = case.spans([(8, 100)])
    gone = (span.total - span.rows - 19) // case.page_size
    pages = [-(10**6)] * gone + [*span.pages[gone:]]
    kit.check_attention(case, backend, [span._replace(pages=pages)], None, TOLERANCE)
    assert flash.calls == [(8, 27)]


def test_what_is_gathered_lies_where_it_lay_at_the_start(kit: ModuleType) -> None:
    case, backend, _ = make(kit, LAYER)
    place = backend._gathered.data_ptr()
    for sequences in ([(9, 90)], [(20, 0)], [(6, 300)]):
        kit.check_attention(case, backend, case.spans(sequences), None, TOLERANCE)
    assert backend._gathered.data_ptr() == place
