"""The manifests in deploy/kubernetes: they build, the API server's schemas take them, and what they name is there."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftserve.server.cli import resolution

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
VERSIONS = ("1.29", "1.37")  # of Kubernetes: the oldest that is meant to take them, and the newest that has a schema
FOREIGN = {"InferencePool", "HTTPRoute", "ScaledObject"}  # kinds of others, which come with their own controllers
STATE = "/state"

kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which builds them, is not installed")


@cache
def built(name: str) -> list[dict[str, Any]]:
    """Return the objects that `kubectl apply -k` would send."""
    done = subprocess.run(["kubectl", "kustomize", str(KUBERNETES / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] in kinds]


def templates(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["spec"]["template"] for one in of_kind(objects, "Deployment", "StatefulSet")]


def server() -> dict[str, Any]:
    """Return the pods' specification in the server's own file."""
    spec: dict[str, Any] = yaml.safe_load((KUBERNETES / "base/statefulset.yaml").read_text(encoding="utf-8"))["spec"]
    return spec


def settings() -> dict[str, str]:
    """Return the server's variables in all kustomizations."""
    literals: list[str] = []
    for name in ("base", "cluster"):
        file = yaml.safe_load((KUBERNETES / name / "kustomization.yaml").read_text(encoding="utf-8"))
        literals += [literal for one in file["configMapGenerator"] for literal in one["literals"]]
    return dict(literal.split("=", 1) for literal in literals)


@kubectl
@pytest.mark.parametrize("name", ["base", "cluster"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_take_every_object(name: str, version: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate has the schemas")
    for one in built(name):
        if one["kind"] not in FOREIGN:
            schemas.validate(one, version, strict=True)


@kubectl
def test_a_misspelt_field_would_be_found() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate has the schemas")
    [stateful] = of_kind(built("base"), "StatefulSet")
    wrong = {**stateful, "spec": {**stateful["spec"], "replica": 1}}
    with pytest.raises(schemas.ValidationError, match="replica"):
        schemas.validate(wrong, VERSIONS[0], strict=True)


@kubectl
@pytest.mark.parametrize("name", ["base", "cluster"])
def test_what_pods_mount_and_run_as_is_there(name: str) -> None:
    objects = built(name)
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for template in templates(objects):
        assert set(_named(template["spec"])) - {("Secret", "grafana")} <= there  # that one is the operator's to make


def _named(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield kind and name of what a pod needs."""
    if "serviceAccountName" in pod:
        yield "ServiceAccount", pod["serviceAccountName"]
    for container in pod["containers"]:
        for source in container.get("envFrom", ()):
            yield "ConfigMap", source["configMapRef"]["name"]
        for variable in container.get("env", ()):
            if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield "Secret", secret["name"]
    for volume in pod["volumes"]:
        for source in [volume, *volume.get("projected", {}).get("sources", ())]:
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"]
            if "persistentVolumeClaim" in source:
                yield "PersistentVolumeClaim", source["persistentVolumeClaim"]["claimName"]


@kubectl
def test_services_and_the_pool_lead_to_ports_that_pods_have() -> None:
    objects = built("cluster")
    led = [(one["spec"]["selector"], port["targetPort"]) for one in of_kind(objects, "Service") for port in _ports(one)]
    [pool] = of_kind(objects, "InferencePool")
    led += [(pool["spec"]["selector"]["matchLabels"], port["number"]) for port in pool["spec"]["targetPorts"]]
    assert len(led) == 6
    for labels, port in led:
        pods = [one for one in templates(objects) if labels.items() <= one["metadata"]["labels"].items()]
        assert len(pods) == 1, labels
        ports = [one for container in pods[0]["spec"]["containers"] for one in container["ports"]]
        assert port in {port for one in ports for port in (one["name"], one["containerPort"])}


def _ports(service: dict[str, Any]) -> list[dict[str, Any]]:
    ports: list[dict[str, Any]] = service["spec"]["ports"]
    return ports


@kubectl
def test_routes_the_pool_and_the_autoscaler_name_what_is_there() -> None:
    objects = built("cluster")
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    [pool], [route], [scaled] = (of_kind(objects, kind) for kind in ("InferencePool", "HTTPRoute", "ScaledObject"))
    picker, target = pool["spec"]["endpointPickerRef"], scaled["spec"]["scaleTargetRef"]
    named = {(picker.get("kind", "Service"), picker["name"]), (target["kind"], target["name"])}
    backends = [backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]
    named |= {(backend.get("kind", "Service"), backend["name"]) for backend in backends}
    assert named <= there
    [stateful] = of_kind(objects, "StatefulSet")
    assert "replicas" not in stateful["spec"]  # the autoscaler's; each apply would set it back


@kubectl
def test_the_dashboard_and_the_rules_are_those_of_compose() -> None:
    maps = {key: text for one in of_kind(built("cluster"), "ConfigMap") for key, text in one["data"].items()}
    for file in ("prometheus/alerts.yml", "grafana/dashboards/peftserve.json"):
        path = ROOT / "deploy" / file
        assert maps[path.name] == path.read_text(encoding="utf-8")


def test_what_runs_has_time_to_end() -> None:
    """A pod serves until others know that it goes, then drains for the whole grace period, then exits."""
    template = server()["template"]["spec"]
    [container] = template["containers"]
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    readiness = container["readinessProbe"]
    assert int(seconds) >= readiness["periodSeconds"] * readiness["failureThreshold"] + 5
    grace = float(settings()["PEFTSERVE_GRACE_PERIOD"])
    assert template["terminationGracePeriodSeconds"] >= int(seconds) + grace + 5


def test_the_server_takes_its_settings() -> None:
    parsed = resolution.resolve({}, settings())
    assert parsed["grace_period"] == float(settings()["PEFTSERVE_GRACE_PERIOD"])
    assert "/models/adapters" in str(parsed["adapter_dir"])


def test_the_state_is_on_a_volume_that_one_pod_has() -> None:
    spec = server()
    [claim] = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == STATE
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"PEFTSERVE_STATE_DIR={STATE}" in image
    assert "--uid 1000" in image
    assert spec["template"]["spec"]["securityContext"]["fsGroup"] == 1000


def test_an_old_server_port_is_no_setting() -> None:
    """A service called peftserve makes Kubernetes set PEFTSERVE_PORT in each pod, unless it is told not to."""
    assert server()["template"]["spec"]["enableServiceLinks"] is False
