import subprocess
import sys
from pathlib import Path

import pytest

from peftserve.server.config import EngineConfig, ServerConfig
from peftserve.server.wire.launch import decode_config, encode_config, engine_command, parse_engine_arguments


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(model="m"),
        EngineConfig(model="ü", store=Path("/a/b"), adapter_memory=1 << 40, prefix_caching=False),
    ],
)
def test_config_survives_the_command_line(config):
    assert decode_config(encode_config(config), EngineConfig) == config
    command = engine_command(7, config)
    assert parse_engine_arguments(command[3:]) == (7, config)


@pytest.mark.parametrize("text", ["", "{}", '{"model": 1}', '{"model": "m", "device": "tpu"}'])
def test_malformed_config_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        decode_config(text, EngineConfig)


def test_a_servers_config_survives_too():
    config = ServerConfig(
        EngineConfig(model="m"),
        Path("/state"),
        preload=(("a", Path("/a")),),
        allow_adapter_paths=(Path("/p"),),
        allow_adapter_sources=frozenset({"hub"}),
        hub_token_file=Path("/t"),
        adapter_sources=("s3://b/{name}",),
        api_keys=("ü",),
    )
    assert decode_config(encode_config(config), ServerConfig) == config


def test_process_ends_with_its_parent_even_while_busy():
    program = (
        "from peftserve.server.wire.launch import exit_with_parent\n"
        "exit_with_parent()\nprint('up', flush=True)\nwhile True: pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.stdin.close()
        assert process.wait(20) == 1
