import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli import resolution
from peftserve.server.cli.errors import CommandError
from peftserve.server.cli.settings.setting import Setting
from peftserve.server.cli.settings.table import SETTINGS

Resolve = Callable[..., dict[str, Any]]


@pytest.fixture
def resolve(tmp_path: Path) -> Resolve:
    """Settings of a command line, of variables, and of a file's content, as `peftserve serve` sees them."""

    def run(*flags: str, file: str | None = None, **environ: str) -> dict[str, Any]:
        if file is not None:
            (tmp_path / "config.toml").write_text(file)
            flags = (*flags, "--config", str(tmp_path / "config.toml"))
        parser = argparse.ArgumentParser()
        resolution.add_arguments(parser)
        return resolution.resolve(vars(parser.parse_args(flags)), environ)

    return run


def test_defaults(resolve: Resolve) -> None:
    chosen = resolve()
    assert {chosen[key] for key in ("model", "max_model_len", "adapter_memory")} == {None}
    assert (chosen["port"], chosen["adapter"], chosen["prefix_caching"]) == (8000, (), True)


def test_a_flag_wins_over_the_environment_over_the_file(resolve: Resolve) -> None:
    file = "port = 1\nmax-loras = 1\nmax_running = 1\n"
    chosen = resolve("--port", "3", file=file, PEFTSERVE_PORT="2", PEFTSERVE_MAX_LORAS="2")
    assert (chosen["port"], chosen["max_loras"], chosen["max_running"]) == (3, 2, 1)


def test_the_environment_may_name_the_file(resolve: Resolve, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('model = "m"\nadapter-memory = "1GiB"\nprefix-caching = false\n')
    chosen = resolve(PEFTSERVE_CONFIG=str(tmp_path / "other.toml"))
    assert (chosen["model"], chosen["adapter_memory"], chosen["prefix_caching"]) == ("m", 1 << 30, False)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_has_all_three_spellings(resolve: Resolve, setting: Setting) -> None:
    raw = _some_value(setting)
    flags = [raw] if setting.name == "model" else [f"--{setting.name}", *([] if setting.is_switch else [raw])]
    listed = f'["{raw}"]' if setting.many else f'"{raw}"'
    by_flag = resolve(*flags)[setting.key]
    assert (
        by_flag == resolve(**{setting.env: raw})[setting.key] == resolve(file=f"{setting.name} = {listed}")[setting.key]
    )
    assert by_flag not in (None, (), "")


def _some_value(setting: Setting) -> str:
    by_metavar = {
        "NAME=PATH": "a=/b",
        "NAME=FILE": "a=/b",
        "NAME=PATH|JSON": "a=/b",
        "SIZE": "2GiB",
        "": "true",
        "SOURCE": "hub",
    }
    by_metavar |= {"URI/{name}": "/srv/{name}"}
    by_metavar |= {
        "ORIGINS": "https://a.example",
        "FORM": "json",
        "FILE|TEMPLATE": "{{ messages }}",
        "URL": "http://127.0.0.1:4318",
    }
    named = {"DEVICE": "cpu", "DTYPE": "float32", "LEVEL": "debug", "SECONDS": "7", "N": "7", "PORT": "7"}
    by_name = {"tool-call-parser": "hermes", "reasoning-parser": "qwen3", "override-generation-config": "{}"}
    by_name |= {"forwarded-allow-ips": "10.0.0.0/8"}
    return by_name.get(setting.name) or {**by_metavar, **named}.get(setting.metavar, "x")


def test_repeatable_flags_collect_and_leave_the_model_alone(resolve: Resolve) -> None:
    chosen = resolve(
        "--adapter", "a=/a", "model", "--adapter", "b=/b", "--lora-modules", "c=/c", '{"name":"d","path":"/d"}'
    )
    assert chosen["model"] == "model"
    assert chosen["adapter"] == (("a", Path("/a")), ("b", Path("/b")))
    assert chosen["lora_modules"] == (("c", Path("/c")), ("d", Path("/d")))


def test_a_variable_holds_several(resolve: Resolve) -> None:
    expected = (("a", Path("/a")), ("b", Path("/b")))
    assert resolve(PEFTSERVE_ADAPTER="a=/a, b=/b")["adapter"] == expected
    as_json = '["a=/a", {"name": "b", "path": "/b"}]'
    assert resolve(PEFTSERVE_LORA_MODULES=as_json)["lora_modules"] == expected


def test_modules_in_a_file_may_be_tables(resolve: Resolve) -> None:
    chosen = resolve(file='lora-modules = [{name = "a", path = "/a"}]')
    assert chosen["lora_modules"] == (("a", Path("/a")),)


@pytest.mark.parametrize(
    ("flags", "environ", "file", "message"),
    [
        (["--max-loras", "0"], {}, None, "--max-loras: '0' is not a whole number of 1 or more"),
        (["--device", "tpu"], {}, None, "--device: 'tpu' is not one of auto, cpu, cuda"),
        (["--adapter", "a"], {}, None, "--adapter: 'a' is not NAME=PATH"),
        ([], {"PEFTSERVE_ADAPTER_MEMORY": "lots"}, None, "PEFTSERVE_ADAPTER_MEMORY: 'lots' is not a size"),
        ([], {"PEFTSERVE_PORT": "tcp://10.0.0.1:8000"}, None, "Kubernetes sets this variable"),
        ([], {}, "port = true", "port in .*config.toml: 'true' is not a whole number"),
        ([], {}, "port = [1]", r"port in .*: '\[1\]' is a list"),
        ([], {}, 'adapter = "a=/b"', "adapter in .*: 'a=/b' is not a list"),
        ([], {}, "prot = 1\nhots = 2", "unknown keys: hots, prot"),
        ([], {}, "port = ", "is not TOML"),
        (["--config", "/nowhere/at-all.toml"], {}, None, "cannot read /nowhere/at-all.toml"),
    ],
)
def test_what_is_wrong_is_named(
    resolve: Resolve, flags: list[str], environ: dict[str, str], file: str | None, message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        resolve(*flags, file=file, **environ)


def test_other_variables_are_let_be(resolve: Resolve) -> None:
    assert resolve(PEFTSERVE_SERVICE_HOST="10.0.0.1")["host"] == "127.0.0.1"
