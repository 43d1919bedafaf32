from types import ModuleType

from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.layout import Group, Rows, Segment
from peftserve.kernels.torch_bypass import TorchBypass

GROUPS = (Group(48, (32, 96)), Group(7, (64,), gather=True), Group(32, (21,), rows=Rows.LOGITS))
ROWS = 40

segments = st.lists(
    st.builds(
        lambda slot, weight, start, length: Segment(slot, weight, start, min(start + length, ROWS)),
        st.integers(0, 3),
        st.sampled_from([1.0, 0.5, -2.0]),
        st.integers(0, ROWS - 1),
        st.sampled_from([0, 1, 2, 7, 14, 40]),
    ),
    max_size=8,
)


@given(tokens=segments, logits=segments, ranks=st.lists(st.integers(0, 20), min_size=8, max_size=8))
@settings(max_examples=40, deadline=None)
def test_any_work_list(kit: ModuleType, tokens: list[Segment], logits: list[Segment], ranks: list[int]) -> None:
    case = kit.Case(GROUPS, device="cpu")
    for slot in range(4):
        chosen = {0: (ranks[slot], ranks[slot + 4]), 1: (ranks[slot],), 2: (ranks[7 - slot],)}
        case.add(slot, {group: r for group, r in chosen.items() if any(r)})
    backend = TorchBypass(case.arena, GROUPS)
    case.attach_all(backend)
    kit.check_step(case, backend, tokens, logits, ROWS, 1e-6)


def test_the_same_work_list_is_planned_once(kit: ModuleType) -> None:
    case = kit.Case(GROUPS, device="cpu")
    case.add(0, {0: (4, 4)})
    backend = TorchBypass(case.arena, GROUPS)
    case.attach_all(backend)
    x = case.input(0, ROWS)
    plans = []
    for tokens in ([Segment(0, 1.0, 0, 2)], [Segment(0, 1.0, 0, 2)], [Segment(0, 1.0, 0, 3)]):
        backend.begin(tokens, [])
        shrunk = backend.shrink(0, x)
        assert shrunk is not None
        plans.append(shrunk.plan)
    assert plans[0] is plans[1]
    assert plans[1] is not plans[2]
