"""What is in deploy/ to watch a server by: it names metrics that there are, and Prometheus takes it."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from peftserve.server.api.metrics.engine_state import EngineCollector
from peftserve.server.api.metrics.requests import Metrics
from peftserve.server.wire.messages import EngineStats

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/peftserve.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def served() -> set[str]:
    """Return the names of all series of a server, as Prometheus stores them."""
    engine: Any = SimpleNamespace(stats=EngineStats(), info=None, stats_age=0.0, restarts=0)
    families = [*Metrics().registry.collect(), *EngineCollector(engine, "base", (), {}).collect()]
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    scaled = yaml.safe_load((DEPLOY / "kubernetes/autoscaling/scaledobject.yaml").read_text(encoding="utf-8"))
    triggers = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    return [*panels, *variables, *triggers, *(rule["expr"] for rule in RULES)]


def test_every_metric_that_is_named_is_served():
    named = {name for text in expressions() for name in re.findall(r"peftserve[:_]\w+", text)}
    assert len(named) > 20
    assert named <= served()


def test_every_family_is_on_the_dashboard():
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    families = {name.removesuffix("_count") for name in served() if not name.endswith(("_bucket", "_sum"))}
    alone = {"peftserve:adapter_integrity_failures_total", "peftserve_shadow_requests_total"}
    assert {name for name in families if name not in shown} == alone


def test_panels_do_not_lie_on_each_other():
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for a, b in combinations(boxes, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(boxes)


def test_compose_mounts_what_is_there():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    files = [DEPLOY / one for one in compose["include"]]
    for service in compose["services"].values():
        mounts = [volume.split(":")[0] for volume in service["volumes"]]
        files += [DEPLOY / mount for mount in mounts if mount.startswith(".")]
        assert {mount for mount in mounts if not mount.startswith(".")} <= compose["volumes"].keys()
    assert [file for file in files if not file.exists()] == []
    [scrape] = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    base = yaml.safe_load(files[0].read_text(encoding="utf-8"))
    host, port = scrape["static_configs"][0]["targets"][0].split(":")
    assert any(mapping.endswith(f":{port}") for mapping in base["services"][host]["ports"])


@promtool
@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
    ],
)
def test_prometheus_takes_it(command):
    done = subprocess.run(["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_takes_what_it_gets_on_kubernetes(tmp_path: Path) -> None:
    """Debian's promtool knows no Kubernetes, so targets stand for what finds them."""
    config = yaml.safe_load((DEPLOY / "kubernetes/monitoring/prometheus.yml").read_text(encoding="utf-8"))
    [scrape] = config["scrape_configs"]
    [found] = scrape.pop("kubernetes_sd_configs")
    assert found["role"] == "pod"
    scrape["static_configs"] = [{"targets": ["peftserve:8000"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(DEPLOY / "prometheus/alerts.yml", tmp_path)
    done = subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
