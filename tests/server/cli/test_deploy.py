from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli import deploy
from peftserve.server.cli.deploy import make_options, with_room
from peftserve.server.cli.errors import CommandError
from peftserve.server.cli.main import main, make_parser
from peftserve.server.config import EngineConfig, ServerConfig

CONFIG = ServerConfig(EngineConfig(model="m", max_running=100), Path("/state"), max_queue=10, grace_period=7.0)


def chosen(*flags: str) -> dict[str, Any]:
    return vars(make_parser().parse_args(["deploy", "ray", *flags]))


@pytest.mark.parametrize(
    ("flags", "least", "most"),
    [((), 1, 1), (("--replicas", "4"), 4, 4), (("--min-replicas", "2", "--max-replicas", "3"), 2, 3)],
)
def test_the_number_of_replicas_is_fixed_or_has_two_ends(flags: tuple[str, ...], least: int, most: int) -> None:
    options = make_options(chosen(*flags), CONFIG)
    assert (options.min_replicas, options.max_replicas, options.grace_period) == (least, most, 7.0)


def test_what_a_replica_reserves_and_where() -> None:
    options = make_options(
        chosen("--ray-address", "auto", "--cpus-per-replica", "0.5", "--gpus-per-replica", "1"), CONFIG
    )
    assert (options.address, options.cpus, options.gpus) == ("auto", 0.5, 1.0)
    assert make_options(chosen(), CONFIG).gpus is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--replicas", "2", "--max-replicas", "3"), "--replicas is a fixed number"),
        (("--min-replicas", "3", "--max-replicas", "2"), "--max-replicas: 2 is less than --min-replicas 3"),
        (("--min-replicas", "3"), "takes --max-replicas beside it"),
    ],
)
def test_numbers_that_contradict_each_other_are_named(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        make_options(chosen(*flags), CONFIG)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--replicas", "0"), "'0' is not a whole number"),
        (("--cpus-per-replica", "many"), "'many' is no number"),
        (("--gpus-per-replica", "-1"), "'-1' is not 0 or more"),
    ],
)
def test_numbers_that_are_none_are_named(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        chosen(*flags)
    assert message in capsys.readouterr().err


def test_there_are_places_for_what_all_replicas_run() -> None:
    assert with_room(CONFIG, make_options(chosen("--replicas", "3"), CONFIG)).max_queue == 210
    assert with_room(CONFIG, make_options(chosen(), CONFIG)) == CONFIG


def test_without_ray_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "find_spec", lambda name: None)
    assert main(["deploy", "ray"]) == 2
    assert "pip install 'peftserve[ray]'" in capsys.readouterr().err


def test_the_settings_of_serve_are_taken_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "ray", "--max-loras", "none"]) == 2
    assert "--max-loras: 'none' is not a whole number" in capsys.readouterr().err
