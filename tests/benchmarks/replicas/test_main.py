import pytest

from benchmarks.replicas import sticking
from benchmarks.replicas.main import ALL, main, parse_arguments


def test_all_is_measured_unless_some_is_named() -> None:
    assert parse_arguments([]).measure.split(",") == [*ALL]
    assert parse_arguments(["--measure", "loss"]).measure == "loss"


def test_what_is_no_measurement_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--measure", "loss,luck"]) == 2
    assert "luck is none of sticking, churn, loss, throughput" in capsys.readouterr().err


def test_each_device_has_room_for_a_quarter() -> None:
    assert sticking.flags(64)[:2] == ("--max-loras", "16")
