"""The manifest and the program agree: flags, ports, folders, rights."""

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from kube2iam.cli import settings_of

MANIFEST = Path(__file__).parents[2] / "daemonset" / "kube2iam.yaml"
NODE = {"NODE_NAME": "node-1", "HOST_IP": "192.0.2.7"}


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {raw["kind"]: raw for raw in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture(scope="module")
def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["DaemonSet"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return dict(only)


def substituted(text: str) -> str:
    """`$(NAME)` as the kubelet replaces it."""
    for name, value in NODE.items():
        text = text.replace(f"$({name})", value)
    return text


def test_its_flags_are_accepted_and_mean_what_they_should(container: dict[str, Any]) -> None:
    assert {variable["name"] for variable in container["env"]} == set(NODE)
    settings = settings_of([substituted(argument) for argument in container["args"]], NODE)
    assert not settings.cautions()
    assert settings.node == NODE["NODE_NAME"]
    assert settings.host_ip == (NODE["HOST_IP"],)
    assert settings.iptables
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.app_port, "metrics": settings.metrics_port_or_app}
    assert settings.metrics_port_or_app != settings.app_port, "what is for operators must be closable"


def test_the_flags_in_its_comments_are_accepted_too() -> None:
    lines = [line.strip() for line in MANIFEST.read_text().splitlines()]
    flags = [line.removeprefix("# - ") for line in lines if line.startswith("# - --")]
    assert flags
    assert settings_of(flags, NODE).base_role_arn


def test_the_probes_ask_for_pages_of_the_metrics_port(container: dict[str, Any]) -> None:
    probes = {name: container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert probes == {
        "livenessProbe": {"path": "/livez", "port": "metrics"},
        "readinessProbe": {"path": "/readyz", "port": "metrics"},
    }


def test_what_must_outlive_the_container_is_on_the_node(pod: dict[str, Any], container: dict[str, Any]) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    paths = {volume["name"]: (volume["hostPath"]["path"], volume["hostPath"]["type"]) for volume in pod["volumes"]}
    state = settings_of([], {}).state_dir
    assert paths == {"state": (state, "DirectoryOrCreate"), "xtables-lock": ("/run/xtables.lock", "FileOrCreate")}
    assert mounts == {name: path for name, (path, _) in paths.items()}


def test_it_runs_on_every_node_and_has_few_rights_there(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["hostNetwork"]
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    rights = container["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert rights["readOnlyRootFilesystem"]
    assert not rights["allowPrivilegeEscalation"]
    assert "privileged" not in rights


def test_services_of_its_namespace_set_no_variables_in_it(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False


def test_a_roll_out_takes_no_longer_on_more_nodes(objects: dict[str, dict[str, Any]]) -> None:
    strategy = objects["DaemonSet"]["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "5%"}}


def test_its_rights_in_the_cluster_are_upstreams_and_events(objects: dict[str, dict[str, Any]]) -> None:
    rules = {resource: set(rule["verbs"]) for rule in objects["ClusterRole"]["rules"] for resource in rule["resources"]}
    watched = {"get", "list", "watch"}
    assert rules == {"pods": watched, "namespaces": watched, "events": {"create", "patch"}}
    account = objects["ServiceAccount"]["metadata"]
    assert objects["DaemonSet"]["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]
    (subject,) = objects["ClusterRoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
