"""One wide product equals the base and all bypasses, whichever adapters come and go: within rounding, and in bits."""

import random
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from peftserve.kernels.bypass.columns import spare as spare_module
from peftserve.kernels.bypass.columns.products import TorchColumns
from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.kernels.bypass.columns.triton_products import TritonColumns
from peftserve.kernels.bypass.layout import Group, GroupLayout, RowSet, Segment

GROUPS = (
    Group(60, (60, 20, 20)),
    Group(61, (17,)),
    Group(60, (49,), rows=RowSet.LOGITS),
    Group(33, (60,), gather=True),
    Group(40, (24,)),
)
WIDE = (0, 1)
COLUMNS = 64
RANKS = ({0: (8, 8, 8), 1: (4,)}, {0: (1, 0, 3)}, {1: (16,), 2: (3,)}, {0: (0, 20, 0), 1: (7,)}, {0: (16, 8, 16)})
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


@pytest.fixture(params=["torch", "triton"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation of the operations on columns."""

    def products(arena: torch.Tensor, *others: Any) -> Any:
        if request.param == "torch":
            return TorchColumns(*others)
        made = TritonColumns(arena, *others)
        made.warm_up()
        return made

    monkeypatch.setattr(spare_module, "_products", products)
    return str(request.param)


def make(kit: ModuleType, dtype: torch.dtype, ranks: tuple[Any, ...] = RANKS) -> tuple[Any, SpareColumns]:
    """Make adapters of these ranks by group, each in the slot of its number, and columns full of old content."""
    case = kit.Case(GROUPS, dtype)
    for slot, there in enumerate(ranks):
        case.add(slot, there)
    case.weights = {g: case._randn(sum(GROUPS[g].out_features), GROUPS[g].in_features + COLUMNS) for g in WIDE}
    spare = SpareColumns(case.arena, GROUPS, case.weights, least_rows=4)
    for slot, (base, layout) in case.slots.items():
        spare.attach(slot, spare.prepare(base, layout))
    return case, spare


def check(kit: ModuleType, case: Any, spare: SpareColumns, segments: list[Segment], rows: int, behind: bool) -> None:
    """Check one step, all of which is in the columns. behind: whether inputs have room behind them."""
    assert spare.begin(segments) == []
    spare.check_integrity()
    for group in WIDE:
        width, bias = GROUPS[group].in_features, case._randn(sum(GROUPS[group].out_features))
        x = case.input(group, rows)
        given = torch.full((1, rows, width + COLUMNS), float("nan"), dtype=case.dtype, device=case.device)
        given[0, :, :width] = x
        found = spare.product(group, given if behind else x[None], bias)[0].split(GROUPS[group].out_features, 1)
        base = F.linear(x.double(), case.weights[group][:, :width].double(), bias.double())
        for place, (y, got) in enumerate(zip(base.split(GROUPS[group].out_features, 1), found, strict=True)):
            expected = case.reference(segments, group, place, x, y)
            kit.assert_close(f"group {group} site {place}", expected, got, TOLERANCE[case.dtype])
        assert not behind or torch.equal(given[0, :, :width], x)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_one_product_is_base_and_bypasses(kit: ModuleType, kind: str, dtype: torch.dtype) -> None:
    """With overlapping segments, weights, rows of no adapter, and adapters that come and go."""
    if kind == "triton" and dtype == torch.bfloat16 and kit.DEVICE != "cuda":
        pytest.skip("triton's interpreter multiplies bfloat16 wrongly")
    case, spare = make(kit, dtype)
    chance = random.Random(0)
    kept = {group: weight[:, : GROUPS[group].in_features].clone() for group, weight in case.weights.items()}
    products = spare._products
    with patch.object(products, "store", side_effect=products.store) as store:
        for step in range(24):
            slots = chance.sample([[0, 1, 2], [3, 0], [4, 1, 2], [2], [0, 4]], 1)[0]
            segments = [
                Segment(slot, chance.choice([1.0, -0.4]), start := chance.randrange(40), start + chance.randint(5, 23))
                for slot in slots
            ]
            check(kit, case, spare, [*segments, Segment(slots[0], 1.0, 9, 9)], 63, behind=step % 2 == 0)
            if step % 6 == 5:
                case.add(slot := chance.randrange(5), RANKS[slot])
                spare.attach(slot, spare.prepare(*case.slots[slot]))
    stored = [slot for call in store.call_args_list for slot in call.args[0]]
    assert 10 < len(stored) < 24 * 2, "who is there is not brought again, and more come than there is room for"
    for group, weight in kept.items():
        assert torch.equal(case.weights[group][:, : GROUPS[group].in_features], weight), "the base's own"


def test_the_same_step_has_the_same_bits_wherever_its_columns_are(kit: ModuleType) -> None:
    case, spare = make(kit, torch.float32)
    x, outputs = case.input(0, 30), []
    for before in ([], [Segment(4, 1.0, 0, 30)], [Segment(3, 1.0, 0, 30)], []):
        spare.begin(before)
        spare.begin([Segment(0, 1.0, 0, 30)])
        outputs.append(spare.product(0, x, None))
    kit.assert_close("moved", outputs[0].double(), outputs[1], 1e-6)
    assert torch.equal(outputs[2], outputs[3])


def test_what_cannot_be_there_is_left_to_others(kit: ModuleType) -> None:
    """Embeddings, groups without columns, more ranks than columns; scales and biases; short segments."""
    elsewhere = ({0: (8, 8, 8), 3: (4,)}, {4: (4,)}, {0: (30, 30, 10)}, {2: (4,)})
    case, spare = make(kit, torch.float32, (RANKS[0], *elsewhere))
    base, layout = case.slots[0]
    scaled = {0: GroupLayout(layout[0].a, layout[0].ranks, layout[0].b, scales=(0, None, None))}
    spare.attach(5, spare.prepare(base, scaled), reads_outputs=True)
    others = [Segment(slot, 1.0, 10 * slot, 10 * slot + 10) for slot in (1, 2, 3, 4, 5)]
    short = Segment(0, 1.0, 60, 63)
    assert spare.begin([*others, short]) == [*others, short]
    assert (spare.active, spare.whole) == (False, False)
    assert spare.begin([Segment(0, 1.0, 0, 10), *others]) == others
    assert (spare.active, spare.whole) == (True, False)
    beside = [Segment(0, 1.0, 45, 55), *others]
    assert spare.begin(beside) == beside, "one of these scales"
    spare.turn_off()
    assert spare.begin([Segment(0, 1.0, 0, 10)]) == [Segment(0, 1.0, 0, 10)]
    assert [spare.columns_of(group) for group in range(5)] == [0] * 5


def test_a_slot_is_never_found_with_what_it_held_before(kit: ModuleType) -> None:
    """Nor after a copy that failed half way."""
    case, spare = make(kit, torch.float32)
    segments = [Segment(0, 1.0, 0, 20), Segment(1, 1.0, 20, 40)]
    check(kit, case, spare, segments, 40, behind=False)
    case.add(0, RANKS[0])
    spare.detach(0)
    assert spare.begin(segments) == segments[:1]
    spare.attach(0, spare.prepare(*case.slots[0]))
    full = spare._products.store

    def fail(held: Any) -> None:
        full(held)
        raise RuntimeError("out of memory")

    with patch.object(spare._products, "store", fail), pytest.raises(RuntimeError, match="out of memory"):
        spare.begin(segments)
    assert not spare.active
    spare.check_integrity()
    check(kit, case, spare, segments, 40, behind=False)


def test_infinite_factors_of_one_adapter_do_not_reach_the_rows_of_others(kit: ModuleType) -> None:
    case, spare = make(kit, torch.float32)
    base, layout = case.slots[1]
    case.arena[base + layout[0].b[0]] = float("inf")
    case.arena[base + layout[0].b[2]] = float("nan")
    assert spare.begin([Segment(0, 1.0, 0, 20), Segment(1, 1.0, 20, 40)]) == []
    x = case.input(0, 40)
    y = spare.product(0, x, None)
    spare.detach(1)
    spare.begin([Segment(0, 1.0, 0, 20)])
    assert torch.allclose(y[:20], spare.product(0, x, None)[:20], atol=1e-5)
