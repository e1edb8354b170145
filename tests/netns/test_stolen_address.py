"""A pod that gives itself another pod's address: where each pod has a link of its own, the answer goes to the owner.

The kernel's source checks (rp_filter) are off; they would stop it earlier.
"""

import os
import socket
from collections.abc import Iterator

import pytest

from tests.netns.layouts import (
    AGENT_PORT,
    LAYOUTS,
    METADATA4,
    METADATA6,
    NODE4,
    NODE6,
    POD4,
    POD6,
    Layout,
    family_of,
    inside,
    ip,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which only root may")

PATIENCE = 1.0
VICTIM = {socket.AF_INET: POD4.format(2), socket.AF_INET6: POD6.format(2)}


@pytest.fixture(scope="module", params=["calico", "vpc"])
def layout(request: pytest.FixtureRequest) -> Iterator[Layout]:
    with LAYOUTS[request.param]() as built:
        thief = built.add_pod()
        ip(
            thief,
            f"addr add {VICTIM[socket.AF_INET]}/32 dev eth0",
            f"addr add {VICTIM[socket.AF_INET6]}/128 dev eth0 nodad",
        )
        yield built


def ask_as_victim(pod: str, address: str, port: int) -> bool:
    """Whether anyone answers a client in `pod` whose source is the first pod's address."""
    family = family_of(address)
    with inside(pod, lambda: socket.socket(family, socket.SOCK_STREAM)) as client:
        client.settimeout(PATIENCE)
        client.bind((VICTIM[family], 0))
        try:
            client.connect((address, port))
            return bool(client.recv(64))
        except OSError:
            return False


@pytest.mark.parametrize(
    ("address", "port"), [(NODE4, AGENT_PORT), (NODE6, AGENT_PORT), (METADATA4, 80), (METADATA6, 80)]
)
def test_a_pod_that_takes_anothers_address_gets_no_answer(layout: Layout, address: str, port: int) -> None:
    victim, thief = layout.pods
    assert ask_as_victim(victim, address, port)
    assert not ask_as_victim(thief, address, port)
