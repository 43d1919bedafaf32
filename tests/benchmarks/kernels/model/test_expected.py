import pytest

from benchmarks.kernels.model.expected import beside_rows, designs_of, expected, in_graph, kind_of, main, plan_of
from benchmarks.kernels.model.explained import layer
from benchmarks.kernels.model.measured import device_of, read, shares
from peftserve.kernels.bypass.triton import model
from peftserve.kernels.bypass.triton.choice import Tuning


def test_no_step_is_expected_under_its_floor_and_none_above_the_best_peer() -> None:
    """The latter is the goal: where the model no longer says so, the candidates or the kernels are worth a look."""
    found = expected(read())
    assert len(found) == 19
    for step in found:
        assert step.floor < step.alone <= step.graph
        assert step.alone < step.peer
        assert len(step.row()) == 8


def test_beside_the_base_all_that_is_added_is_less_than_the_peers() -> None:
    for _, behind, second, _, peer in beside_rows(read()):
        assert min(float(behind), float(second)) < float(peer)


@pytest.mark.parametrize(
    ("rows", "adapters", "kind"),
    [(64, 64, "each"), (64, 30, "each"), (64, 16, "tiles"), (64, 4, "few"), (1, 1, "each")],
)
def test_a_step_is_of_the_backends_kind(rows: int, adapters: int, kind: str) -> None:
    assert kind_of(rows, adapters) == kind


def test_programs_beyond_the_steps_own_are_idle() -> None:
    device, there = device_of(read()), shares(64, 16, "16")
    tuning = Tuning(device, layer())
    captured = in_graph(plan_of(tuning), there, device)
    assert len(captured) == len(layer())
    for pair, design, group in zip(captured, designs_of(tuning, there), layer(), strict=True):
        exact = model.shrink(design, group, there, device), model.expand(design, group, there, device)
        for launch, own in zip(pair, exact, strict=True):
            assert launch == own._replace(idle=launch.idle), "here the graph has the step's own designs"
            assert launch.idle >= 0
        assert pair[1].idle > 0


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    said = capsys.readouterr().out
    assert said.count("\n| 64 x 64, 8-64 |") == 1
    assert "geometric mean of 15 decodes" in said
