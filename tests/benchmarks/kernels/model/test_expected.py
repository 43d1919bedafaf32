import pytest

from benchmarks.kernels.model.expected import beside_rows, designs_of, expected, in_graph, main, tiles_of_kind
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
        assert step.row().count("|") == 9


def test_beside_the_base_all_that_is_added_is_less_than_the_peers() -> None:
    for row in beside_rows(read()):
        _, _, behind, second, _, peer, _ = (cell.strip() for cell in row.split("|"))
        assert min(float(behind), float(second)) < float(peer)


@pytest.mark.parametrize(
    ("rows", "adapters", "tiles"),
    [(64, 64, (64, 64)), (64, 30, (64, 64)), (64, 16, (16, 32)), (64, 4, (8, 8)), (1, 1, (1, 1))],
)
def test_graphs_have_tiles_for_what_all_steps_of_a_kind_have(rows: int, adapters: int, tiles: tuple[int, int]) -> None:
    assert tiles_of_kind(rows, adapters) == tiles


def test_programs_beyond_the_steps_own_are_idle() -> None:
    table = read()
    device, there = device_of(table), shares(64, 16, "16")
    design, group = designs_of(Tuning(device, layer()), there)[0], layer()[0]
    pair = model.shrink(design, group, there, device), model.expand(design, group, there, device)
    for exact, captured in zip(pair, in_graph(pair, design, group, there), strict=True):
        assert captured == exact._replace(idle=captured.idle)
        assert captured.idle >= 0
    assert in_graph(pair, design, group, there)[1].idle > 0


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    said = capsys.readouterr().out
    assert said.count("\n| 64 x 64, 8-64 |") == 1
    assert "geometric mean of 15 decodes" in said
