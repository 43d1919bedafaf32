from dataclasses import replace
from types import ModuleType
from unittest.mock import create_autospec

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from peftserve.kernels.attention.flash.calls import Packed, flash_of, sdpa_flash, supports, torch_flash
from peftserve.kernels.attention.layout import AttentionLayer, Span
from peftserve.kernels.attention.reference import naive_attend

LAYER = AttentionLayer(heads=6, kv_heads=2, key_dim=16, value_dim=16, scale=0.3)
INTS = torch.tensor([0, 4, 7], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"window": 5}, True),
        ({"window": 5, "restarts": True}, False),
        ({"biased": True}, False),
        ({"softcap": 30.0}, False),
        ({"sinks": True}, False),
        ({"value_dim": 8}, False),
        ({"key_dim": 512, "value_dim": 512}, False),
        ({"key_dim": 20, "value_dim": 20}, False),
    ],
    ids=str,
)
def test_layers_that_ask_for_more_than_flash_kernels_know_are_not_theirs(
    change: dict[str, object], taken: bool
) -> None:
    assert supports(replace(LAYER, **change)) == taken  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_has_none(dtype: torch.dtype) -> None:
    assert torch_flash(dtype, torch.device("cpu")) is None


@pytest.mark.parametrize(("window", "asked"), [(None, (-1, 0)), (1, (0, 0)), (128, (127, 0))])
def test_torchs_own_is_asked_as_it_wants_to_be(window: int | None, asked: tuple[int, int]) -> None:
    """The signature of the installed torch refuses unknown arguments, such as `enable_gqa` before 2.12."""
    spied = create_autospec(varlen_attn)
    tensors = torch.zeros(7, 6, 16), torch.zeros(7, 2, 16), torch.zeros(7, 2, 16)
    found = flash_of(spied)(*tensors, Packed(INTS, INTS, 4, 3), replace(LAYER, window=window))
    assert found is spied.return_value
    (call,) = spied.call_args_list
    assert call.args == (*tensors, INTS, INTS, 4, 3)
    assert call.kwargs["window_size"] == asked
    assert call.kwargs["scale"] == LAYER.scale
    assert call.kwargs.get("enable_gqa", True)


def test_grouped_heads_are_not_spoken_of_where_that_is_unknown() -> None:
    def old(*args: object, scale: float, window_size: tuple[int, int]) -> tuple[object, ...]:
        return scale, window_size

    assert flash_of(old)(INTS, INTS, INTS, Packed(INTS, INTS, 4, 3), LAYER) == (0.3, (-1, 0))


@pytest.mark.parametrize("window", [None, 1, 6])
def test_the_plain_form_is_attention_of_each_sequences_last_rows(kit: ModuleType, window: int | None) -> None:
    layer = replace(LAYER, window=window)
    case = kit.AttentionCase(layer)
    rows, totals = (5, 3), (12, 3)
    query = torch.randn(8, 6, 16)
    key, value = torch.randn(2, 15, 2, 16)
    spans, first = list[Span](), 0
    for row, count, total in zip((0, 5), rows, totals, strict=True):
        spans.append(Span(row, count, total, [len(spans)]))
        case.keys[len(spans) - 1, :total], case.values[len(spans) - 1, :total] = (
            new[first : first + total] for new in (key, value)
        )
        first += total
    wanted = naive_attend(spans, layer, query.transpose(0, 1)[None], case.keys, case.values)
    ends, key_ends = torch.tensor([0, 5, 5, 8]), torch.tensor([0, 12, 12, 15])
    kit.assert_close("flash", wanted, sdpa_flash(query, key, value, Packed(ends, key_ends, 5, 12), layer), 1e-6)


def test_rows_of_a_sequence_without_keys_do_not_matter() -> None:
    query, key = torch.randn(3, 6, 16), torch.randn(2, 2, 16)
    ends, key_ends = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 2])
    found = sdpa_flash(query, key, key, Packed(ends, key_ends, 2, 2), LAYER)
    alone = torch.tensor([0, 2])
    assert torch.equal(found[1:], sdpa_flash(query[1:], key, key, Packed(alone, alone, 2, 2), LAYER))
