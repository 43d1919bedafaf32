import sys
from pathlib import Path

import pytest

from peftserve.server.config import EngineConfig
from peftserve.server.deploy.on_ray.options import MODULE, RayOptions, command_maker, parse_options
from peftserve.server.wire.launch import parse_engine_arguments


def test_the_command_says_all_that_was_asked() -> None:
    options = RayOptions(2, 4, "auto", 0.5, None, 1.0, 2.0, 7.0, 8.0)
    config = EngineConfig(model="m", store=Path("/store"))
    python, _, module, *said = command_maker(options)(5, config)
    assert (python, module) == (sys.executable, MODULE)
    assert parse_engine_arguments(said[:2]) == (5, config)
    assert parse_options(said[2]) == options


def test_what_is_no_such_text_is_refused() -> None:
    with pytest.raises(ValueError, match="min_replicas"):
        parse_options('{"min_replicas": "many"}')
