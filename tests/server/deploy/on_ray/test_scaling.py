"""The policy, with what Serve tells it as Serve tells it; that Serve takes it is seen in `test_fleet.py`."""

from types import SimpleNamespace
from typing import Any

import pytest

from peftserve.server.deploy.on_ray.scaling import POLICY, by_pressure, report
from peftserve.server.deploy.scaling import Pressure


def context(*pressures: Pressure, **more: Any) -> SimpleNamespace:
    told: dict[str, dict[str, float]] = {}
    for replica, pressure in enumerate(pressures):
        for name, value in report(pressure).items():
            told.setdefault(name, {})[f"replica-{replica}"] = value
    bounds = {"capacity_adjusted_min_replicas": 1, "capacity_adjusted_max_replicas": 4, "target_num_replicas": 3}
    return SimpleNamespace(aggregated_metrics=told, **bounds, **more)


def test_what_replicas_report_decides() -> None:
    assert by_pressure(context(Pressure(100, 100, 0.0), Pressure(100, 100, 0.0))) == (3, {})
    assert by_pressure(context(Pressure(1, 100, 9.0))) == (2, {})
    assert by_pressure(context(Pressure(1, 100, 0.0), Pressure(0, 100, 0.0))) == (1, {})


@pytest.mark.parametrize("told", [None, {}, {"sequences": {"a": 1.0}}])
def test_while_none_reports_the_number_stays(told: Any) -> None:
    waiting = context()
    waiting.aggregated_metrics = told
    assert by_pressure(waiting) == (3, {})


def test_serve_finds_the_policy_by_its_name() -> None:
    module, _, name = POLICY.partition(":")
    assert (module, name) == ("peftserve.server.deploy.on_ray.scaling", by_pressure.__name__)
