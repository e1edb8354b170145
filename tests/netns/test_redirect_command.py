"""`kube2iam redirect install|remove|status` as an init container or a person runs it, on a node of three layouts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.layouts import LAYOUTS, METADATA4, METADATA6, NODE4, NODE6, Layout, ask, execute

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which only root may")

KUBE2IAM = str(Path(sys.executable).with_name("kube2iam"))
TIME_LIMIT = 30.0


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Iterator[Layout]:
    with LAYOUTS[request.param]() as layout:
        yield layout


def redirect(layout: Layout, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", layout.node, KUBE2IAM, "redirect", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        env={"PATH": os.environ["PATH"], **environment},
    )


def test_install_status_remove(layout: Layout) -> None:
    assert redirect(layout, "status").returncode == 1
    installed = redirect(layout, "install", f"--host-interface={layout.interface}", HOST_IPS=f"{NODE4},{NODE6}")
    assert (installed.returncode, installed.stderr) == (0, "")
    assert f"{METADATA4} from {layout.interface},!lo -> {NODE4}:8181" in installed.stdout
    assert [ask(layout.pod, address) for address in (METADATA4, METADATA6)] == ["agent", "agent"]
    found = redirect(layout, "status")
    assert (found.returncode, found.stderr) == (0, "")
    assert f"{METADATA6} from {layout.interface},!lo -> [{NODE6}]:8181" in found.stdout
    assert redirect(layout, "remove").stdout == "nft: removed\nlegacy: nothing to remove\n"
    assert redirect(layout, "remove").returncode == 0
    assert redirect(layout, "status").returncode == 1
    assert ask(layout.pod, METADATA4) == "real"


def test_a_node_whose_cluster_uses_the_legacy_tables(layout: Layout) -> None:
    """auto goes where kube-proxy's chains are, and leaves nothing behind that competes with it."""
    flags = f"--host-interface={layout.interface}", f"--host-ip={NODE4}"
    redirect(layout, "install", *flags, "--app-port=9999")
    execute(layout.node, "iptables-legacy", "-t", "nat", "-N", "KUBE-SERVICES")
    installed = redirect(layout, "install", *flags)
    assert installed.returncode == 0
    assert f"legacy: {METADATA4} from {layout.interface},!lo -> {NODE4}:8181" in installed.stdout
    assert ask(layout.pod, METADATA4) == "agent"
    assert ask(layout.pod, METADATA6) == "refused"
    assert "legacy: removed" in redirect(layout, "remove").stdout
    assert "KUBE-SERVICES" in execute(layout.node, "iptables-legacy-save")


def test_auto_is_said_with_what_it_came_to() -> None:
    with LAYOUTS["vpc"]() as layout:
        installed = redirect(layout, "install", "--host-interface=auto", f"--host-ip={NODE4}")
        assert f"{METADATA4} from !lo,!eth0 -> {NODE4}:8181" in installed.stdout


REFUSALS = [
    (["install"], {}, "--host-ip"),
    (["install", "--host-ip=127.0.0.1"], {}, "--host-ip 127.0.0.1: pods cannot reach that address"),
    (["install", f"--host-ip={NODE4}", "--host-interface=auto,docker0"], {}, "--host-interface"),
    (
        ["install", f"--host-ip={NODE4}", "--redirect-backend=nft"],
        {"PATH": "/nowhere"},
        "nft is not installed: install the package nftables",
    ),
]


@pytest.mark.parametrize(("words", "environment", "said"), REFUSALS)
def test_an_error_is_one_line_that_names_the_mend(words: list[str], environment: dict[str, str], said: str) -> None:
    with LAYOUTS["bridge"]() as layout:
        command = ["ip", "netns", "exec", layout.node, "env", "-i", *(f"{k}={v}" for k, v in environment.items())]
        done = subprocess.run(
            [*command, KUBE2IAM, "redirect", *words], check=False, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


@pytest.mark.parametrize(("backend", "need"), [("nft", "NET_ADMIN"), ("legacy", "NET_ADMIN and NET_RAW")])
def test_missing_rights_are_named(backend: str, need: str) -> None:
    with LAYOUTS["bridge"]() as layout:
        execute(layout.node, "iptables-legacy", "-t", "nat", "-L")
        command = [KUBE2IAM, "redirect", "status", f"--redirect-backend={backend}"]
        done = subprocess.run(
            ["ip", "netns", "exec", layout.node, "setpriv", "--bounding-set=-net_admin,-net_raw", *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
    assert done.returncode == 1
    assert need in done.stderr
    assert len(done.stderr.splitlines()) == 1
