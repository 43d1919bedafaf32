import pytest

from peftserve.server.deploy.scaling import Pressure, replicas_for

IDLE = Pressure(0, 100, 0.0)


def test_without_any_word_it_is_the_least() -> None:
    assert replicas_for([], 2, 4) == 2


@pytest.mark.parametrize(("sequences", "wanted"), [(0, 1), (70, 1), (71, 2), (141, 3), (10_000, 4)])
def test_as_many_as_the_sequences_fill_to_seven_tenths(sequences: float, wanted: int) -> None:
    assert replicas_for([Pressure(sequences, 100, 0.0)], 1, 4) == wanted
    assert replicas_for([Pressure(sequences / 2, 100, 0.0)] * 2, 1, 4) == wanted


def test_one_more_while_adapters_push_each_other_out() -> None:
    assert replicas_for([Pressure(1, 100, 0.6)], 1, 4) == 2
    assert replicas_for([Pressure(1, 100, 0.6)] * 2, 1, 4) == 3
    assert replicas_for([Pressure(1, 100, 0.6)] * 4, 1, 4) == 4


def test_none_is_taken_away_while_some_do() -> None:
    assert replicas_for([IDLE, Pressure(0, 100, 0.1)], 1, 4) == 2
    assert replicas_for([IDLE, IDLE], 1, 4) == 1
