"""Whether a connection came through the redirect, told by a real kernel in a network namespace of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kube2iam.imds import listen

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import socket
from kube2iam.imds.listen import listen, redirected

four, six = listen(8181)
for listener in (four, six):
    listener.setblocking(True)
for listener, asked in [
    (four, ("169.254.169.254", 80)), (four, ("127.0.0.1", 8181)), (four, ("10.9.8.7", 8181)),
    (six, ("fd00:ec2::254", 80)), (six, ("::1", 8181)),
]:
    with socket.create_connection(asked, timeout=5) as client:
        accepted, _ = listener.accept()
        with accepted:
            print(asked[0], redirected(accepted))
"""
RULES = """
table inet asked {
  chain output {
    type nat hook output priority -100;
    ip daddr 169.254.169.254 tcp dport 80 dnat ip to 10.9.8.7:8181
    ip6 daddr fd00:ec2::254 tcp dport 80 dnat ip6 to [::1]:8181
  }
}
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"k2i-front-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_the_kernel_knows_what_was_asked(namespace: str) -> None:
    inside = ["ip", "netns", "exec", namespace]
    for command in (
        "ip link set lo up",
        "ip address add 10.9.8.7/32 dev lo",
        "ip route add 169.254.169.254/32 dev lo",
        "ip -6 route add fd00:ec2::254/128 dev lo",
    ):
        subprocess.run([*inside, *command.split()], check=True)
    subprocess.run([*inside, "nft", "-f", "-"], input=RULES, text=True, check=True)
    said = subprocess.run(
        [*inside, sys.executable, "-c", PROGRAM], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert said.splitlines() == [
        "169.254.169.254 True", "127.0.0.1 False", "10.9.8.7 False", "fd00:ec2::254 True", "::1 False",
    ]  # fmt: skip


def test_a_client_that_has_gone_is_not_from_here() -> None:
    with socket.socket() as unconnected:
        assert not listen.from_here(unconnected)
