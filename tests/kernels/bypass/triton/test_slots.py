import torch

from peftserve.kernels.bypass.layout import Group, GroupLayout
from peftserve.kernels.bypass.triton.slots import SlotTable

GROUPS = (Group(300, (40, 17)), Group(20, (33,), gather=True))


def test_a_slot_comes_and_goes_where_it_was() -> None:
    slots = SlotTable(torch.device("cpu"), GROUPS, 3)
    address = slots.table.data_ptr()
    slots.attach(2, slots.prepare(800, {0: GroupLayout(8, (3, 4), (64, 128), scales=(None, 0), biases=(256, None))}))
    assert slots.table[2, 0, :12].tolist() == [808, 7, 3, 0, 864, 0, 1057, 4, 3, 928, 801, 0]
    assert not slots.table[:2].any()
    assert not slots.table[2, 1].any()
    assert slots.ranks[0].tolist() == [0, 0, 7]
    assert slots.works.tolist() == [[False, False, True], [False] * 3]
    slots.detach(2)
    assert not slots.table.any()
    assert not slots.works.any()
    assert not slots.ranks.any()
    assert slots.table.data_ptr() == address


def test_rows_alone_are_work() -> None:
    slots = SlotTable(torch.device("cpu"), GROUPS, 1)
    slots.attach(0, slots.prepare(0, {0: GroupLayout(0, (0, 0), (0, 0), scales=(0, None))}))
    assert slots.works[:, 0].tolist() == [True, False]
    assert not slots.ranks.any()


def test_odd_offsets_end_the_alignment() -> None:
    slots = SlotTable(torch.device("cpu"), GROUPS, 2)
    slots.attach(0, slots.prepare(64, {1: GroupLayout(8, (2,), (96,))}))
    assert slots.alignment == 8
    slots.attach(1, slots.prepare(64, {1: GroupLayout(8, (2,), (97,))}))
    assert slots.alignment == 1
