from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli import resolution, serve
from peftserve.server.cli.errors import CommandError
from peftserve.server.config import ServerConfig
from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL, DEMO_ROUTES


def config_of(environ: dict[str, str] | None = None, **flags: Any) -> ServerConfig:
    return serve.make_config(resolution.resolve(flags, {}), environ or {})


def test_without_a_model_the_demo_is_served() -> None:
    config = config_of({"XDG_STATE_HOME": "/state"})
    assert (config.served_model_name, config.engine.model) == ("demo", str(DEMO_MODEL))
    assert (dict(config.preload), dict(config.preload_routes)) == (DEMO_ADAPTERS, DEMO_ROUTES)
    assert config.state_dir == Path("/state/peftserve/demo")
    assert config.engine.store == config.state_dir / "adapters"


def test_a_folder_and_a_hub_id_name_themselves(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    assert config_of(model=str(tmp_path / "tiny")).served_model_name == "tiny"
    by_id = config_of({"XDG_STATE_HOME": "/state"}, model="org/tiny")
    assert (by_id.served_model_name, by_id.state_dir) == ("org/tiny", Path("/state/peftserve/org--tiny"))
    assert by_id.preload == by_id.preload_routes == ()
    assert config_of(model="org/tiny", served_model_name=("mine",)).served_model_name == "mine"
    several = config_of(model="org/tiny", served_model_name=("mine", "org/tiny", "mine"))
    assert (several.served_model_name, several.other_model_names) == ("mine", ("org/tiny",))


def test_every_setting_arrives(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\nk1\n\n k2 \n")
    numbers = ["max_model_len", "max_batch_tokens", "max_running", "kv_cache_tokens", "page_size", "adapter_memory"]
    numbers += [
        "wide_columns",
        "max_loras",
        "max_lora_rank",
        "max_dense_delta",
        "host_adapter_memory",
        "max_cpu_loras",
        "num_threads",
    ]
    config = config_of(
        **{field: str(i) for i, field in enumerate(numbers, 1)},
        model="m",
        api_key_file=str(tmp_path / "keys"),
        lora_modules=[f"a={tmp_path}"],
        adapter=[f"b={tmp_path}"],
        route=[f"r={tmp_path / 'keys'}"],
        allow_adapter_path=[str(tmp_path)],
        allow_adapter_source=["hub", "s3"],
        allow_source_host=["a.example", "*.b.example"],
        adapter_source=["hub://owner/{name}", "/srv/{name}"],
        adapter_dir=str(tmp_path),
        upload_limit="1MiB",
        grace_period="1.5",
        trust_remote_code="true",
    )
    assert [getattr(config.engine, field) for field in numbers] == list(range(1, len(numbers) + 1))
    assert (config.api_keys, config.api_key_file) == ((), tmp_path / "keys")
    assert config.preload == (("b", tmp_path), ("a", tmp_path))
    assert config.preload_routes == (("r", tmp_path / "keys"),)
    assert (config.allow_adapter_paths, config.allow_adapter_sources) == ((tmp_path,), {"hub", "s3"})
    assert config.allow_source_hosts == ("a.example", "*.b.example")
    assert (config.adapter_sources, config.adapter_dir) == (("hub://owner/{name}", "/srv/{name}"), tmp_path)
    assert (config.upload_limit, config.grace_period, config.engine.trust_remote_code) == (1 << 20, 1.5, True)


def test_limits_of_clients_arrive_and_are_as_the_readme_says_by_default() -> None:
    config = config_of()
    assert (config.limit_header_bytes, config.limit_connections, config.limit_connections_per_address) == (
        32768,
        4096,
        0,
    )
    times = config.timeout_headers, config.timeout_body, config.timeout_idle, config.timeout_write
    assert times == (10, 60, 75, 60)
    fields = {"limit_header_bytes": "8KiB", "limit_connections": "0", "limit_connections_per_address": "9"}
    fields |= {"limit_body_memory": "1GiB", "timeout_headers": "0.5", "timeout_body": "0", "timeout_idle": "7s"}
    config = config_of(**fields, timeout_write="8")
    assert (config.limit_header_bytes, config.limit_connections, config.limit_connections_per_address) == (8192, 0, 9)
    assert config.limit_body_memory == 1 << 30
    times = config.timeout_headers, config.timeout_body, config.timeout_idle, config.timeout_write
    assert times == (0.5, 0, 7, 8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"adapter": ["a=/nowhere"]}, "--adapter a: there is no folder '/nowhere'"),
        ({"adapter": ["a=/", "a=/"]}, "--adapter: the name .a. comes twice"),
        ({"adapter": ["a=/"], "lora_modules": ["a=/"]}, "--adapter: the name .a. comes twice"),
        ({"route": ["r=/"]}, "--route r: there is no file '/'"),
        ({"route": ["r=/dev/null"]}, "--route r: there is no file"),
        ({"allow_adapter_path": ["/nowhere"]}, "--allow-adapter-path: there is no folder"),
        ({"api_key_file": "/nowhere"}, "--api-key-file: '/nowhere' cannot be read"),
        ({"api_key_file": "/dev/null"}, "has no key in it"),
        ({"enable_lora": False}, "adapters are always on"),
    ],
)
def test_mistakes_are_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        config_of(model="m", **flags)
