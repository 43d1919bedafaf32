"""Defaults stand in the configurations; the command line, its help and the documented table have them from there."""

import argparse
from dataclasses import MISSING, fields
from pathlib import Path

from peftserve.server.cli import resolution, serve
from peftserve.server.cli.settings.setting import DEFAULTS, Setting
from peftserve.server.cli.settings.table import SETTINGS
from peftserve.server.config import EngineConfig, ServerConfig
from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL, DEMO_ROUTES

# Fields that no flag sets by itself: made of others, or of files that a flag names.
MADE = {
    "store",
    "served_model_name",
    "other_model_names",
    "preload",
    "preload_routes",
    "allow_adapter_paths",
    "allow_adapter_sources",
    "allow_source_hosts",
    "adapter_sources",
    "api_keys",
    "metrics_keys",
}


def setting(name: str) -> Setting:
    return next(setting for setting in SETTINGS if setting.name == name)


def test_who_sets_nothing_gets_the_configurations_own_defaults() -> None:
    state = Path("/state/peftserve/demo")
    assert serve.make_config(resolution.resolve({}, {}), {"XDG_STATE_HOME": "/state"}) == ServerConfig(
        EngineConfig(str(DEMO_MODEL), store=state / "adapters"),
        state,
        served_model_name="demo",
        preload=tuple(DEMO_ADAPTERS.items()),
        preload_routes=tuple(DEMO_ROUTES.items()),
    )


def test_every_field_with_a_default_has_a_setting() -> None:
    defaults = {f.name for kind in (EngineConfig, ServerConfig) for f in fields(kind) if f.default is not MISSING}
    assert {setting.key for setting in SETTINGS} >= defaults - MADE
    assert DEFAULTS.keys() == defaults | {"enable_lora", "enable_auto_tool_choice"}


def test_defaults_are_shown_as_people_write_them() -> None:
    shown = {name: setting(name).shown for name in ("upload-limit", "limit-header-bytes", "timeout-headers", "port")}
    assert shown == {"upload-limit": "4GiB", "limit-header-bytes": "32KiB", "timeout-headers": "10", "port": ""}
    assert setting("limit-connections-per-address").shown == "0"
    for size in (s for s in SETTINGS if s.metavar == "SIZE" and s.default is not None):
        assert size.parse(size.shown) == size.default


def test_the_help_says_every_default() -> None:
    parser = argparse.ArgumentParser()
    resolution.add_arguments(parser)
    texts = {action.dest: action.help or "" for action in parser._actions}
    for one in SETTINGS[1:]:
        said = one.shown.replace("`", "") or one.default
        assert one.is_switch or said in ("", None) or texts[one.key].endswith(f"(default: {said})")
