"""Real packets through real rules: three layouts of pods, both backends, both families.

What is said here of the kernel is asked of the kernel: a pod, the host and a real metadata service connect.
"""

import asyncio
import contextlib
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from kube2iam.redirect import legacy
from kube2iam.redirect.backends import BACKENDS, RedirectBackend, others
from kube2iam.redirect.keeper import RedirectKeeper
from kube2iam.redirect.routes import follow
from kube2iam.redirect.rule import RedirectError, RedirectRule, Status
from tests.netns.layouts import (
    AGENT_PORT,
    LAYOUTS,
    METADATA4,
    METADATA6,
    NODE4,
    NODE6,
    OTHER_PORT,
    PATIENCE,
    REAL4,
    REAL6,
    Layout,
    ask,
    connection,
    execute,
    inside,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which only root may")

METADATA = (METADATA4, METADATA6)
FLUSHES = {
    "nft": [["nft", "flush", "ruleset"]],
    "legacy": [
        [program, "-t", table, flag]
        for program in ("iptables-legacy", "ip6tables-legacy")
        for table in ("nat", "filter")
        for flag in ("-F", "-X")
    ],
}
"""What others do to rules, by the backend whose rules it is."""


@pytest.fixture(scope="module", params=LAYOUTS)
def built(request: pytest.FixtureRequest) -> Iterator[Layout]:
    with LAYOUTS[request.param]() as layout:
        for address in METADATA:
            assert ask(layout.pod, address) == "real", "without a redirect a pod reaches the node's own service"
        yield layout


@pytest.fixture
def layout(built: Layout) -> Iterator[Layout]:
    yield built
    for commands in FLUSHES.values():
        for command in commands:
            execute(built.node, *command)


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> RedirectBackend:
    return BACKENDS[request.param]()


def rule_for(layout: Layout, *host_ips: str, port: int = AGENT_PORT, interface: str = "") -> RedirectRule:
    return RedirectRule.of(host_ips or (NODE4, NODE6), port, interface or layout.interface)


def ensure(layout: Layout, backend: RedirectBackend, rule: RedirectRule) -> str:
    return layout.run(lambda: backend.ensure(rule))


def status(layout: Layout, backend: RedirectBackend) -> Status:
    return layout.run(backend.status)


def test_a_pod_reaches_the_agent_and_the_host_the_real_service(layout: Layout, backend: RedirectBackend) -> None:
    assert ensure(layout, backend, rule_for(layout))
    for address in METADATA:
        assert ask(layout.pod, address) == "agent"
        assert ask(layout.node, address) == "real", "a process of the host, hostNetwork pods included"
    assert status(layout, backend).present


def test_other_traffic_is_untouched(layout: Layout, backend: RedirectBackend) -> None:
    ensure(layout, backend, rule_for(layout))
    for address in METADATA:
        assert ask(layout.pod, address, OTHER_PORT) == "other port"
    for address in (REAL4, REAL6):
        assert ask(layout.pod, address) == "other address"
    for address in (NODE4, NODE6):
        assert ask(layout.pod, address, AGENT_PORT) == "agent"


def test_nothing_is_changed_twice(layout: Layout, backend: RedirectBackend) -> None:
    rule = rule_for(layout)
    assert ensure(layout, backend, rule)
    assert ensure(layout, backend, rule) == ""
    assert layout.run(lambda: BACKENDS[backend.name]().ensure(rule)) == "", "another process finds nothing amiss either"


def test_a_rule_of_ours_that_is_out_of_date_is_replaced(layout: Layout, backend: RedirectBackend) -> None:
    ensure(layout, backend, rule_for(layout, port=9999))
    assert ask(layout.pod, METADATA4) == "refused", "nobody listens there any more"
    assert "different" in ensure(layout, backend, rule_for(layout))
    for address in METADATA:
        assert ask(layout.pod, address) == "agent"


@pytest.mark.parametrize(("destination", "led", "refused"), [(NODE4, *METADATA), (NODE6, *reversed(METADATA))])
def test_a_family_without_a_destination_is_refused_at_once(
    layout: Layout, backend: RedirectBackend, destination: str, led: str, refused: str
) -> None:
    ensure(layout, backend, rule_for(layout, destination))
    assert ask(layout.pod, led) == "agent"
    assert ask(layout.pod, refused) == "refused"
    assert ask(layout.node, refused) == "real"
    assert ask(layout.pod, refused, OTHER_PORT) == "other port"


def test_a_family_that_had_a_destination_is_refused(layout: Layout, backend: RedirectBackend) -> None:
    ensure(layout, backend, rule_for(layout))
    ensure(layout, backend, rule_for(layout, NODE4))
    assert ask(layout.pod, METADATA6) == "refused"
    assert ensure(layout, backend, rule_for(layout, NODE4)) == ""


@pytest.mark.parametrize("address", METADATA)
def test_a_connection_that_was_open_before_is_cut(layout: Layout, backend: RedirectBackend, address: str) -> None:
    with connection(layout.pod, address) as client, connection(layout.node, address) as host:
        assert client.recv(100) == host.recv(100) == b"real\n"
        ensure(layout, backend, rule_for(layout))
        client.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            client.recv(100)
        host.sendall(b"still here")
        assert host.recv(100) == b"still here"
    assert ask(layout.pod, address) == "agent"


def test_a_metadata_address_of_the_nodes_own_is_guarded_too(layout: Layout, backend: RedirectBackend) -> None:
    """Some nodes have the address on an interface of theirs, for a proxy of their own."""
    execute(layout.node, "ip", "addr", "add", f"{METADATA4}/32", "dev", "lo")
    layout.network.serve(layout.node, METADATA4, 80, "proxy")
    try:
        ensure(layout, backend, rule_for(layout, NODE6))
        assert ask(layout.pod, METADATA4) == "refused"
        assert ask(layout.node, METADATA4) == "proxy"
        ensure(layout, backend, rule_for(layout))
        assert ask(layout.pod, METADATA4) == "agent"
        assert ask(layout.node, METADATA4) == "proxy"
    finally:
        layout.network.servers.pop().close()
        execute(layout.node, "ip", "addr", "del", f"{METADATA4}/32", "dev", "lo")


@pytest.mark.parametrize("interface", ["auto", "!eth0", "+,!eth+"])
def test_interfaces_need_not_be_named(layout: Layout, backend: RedirectBackend, interface: str) -> None:
    rule = rule_for(layout, interface=interface)
    ensure(layout, backend, inside(layout.node, follow(rule, tuple)))
    assert ask(layout.pod, METADATA4) == "agent"
    assert ask(layout.node, METADATA4) == "real"
    newcomer = layout.add_pod()
    for address in METADATA:
        assert ask(newcomer, address) == "agent", "from its first packet, without another check"


def test_auto_counts_an_uplink_that_pods_hang_on(layout: Layout) -> None:
    """A bridge that the node's network card belongs to is both."""
    auto = rule_for(layout, interface="auto")
    assert not inside(layout.node, follow(auto, tuple)).interfaces.matches("eth0")
    assert inside(layout.node, follow(auto, lambda: (REAL4,))).interfaces.matches("eth0")
    assert not inside(layout.node, follow(auto, lambda: (METADATA4, "198.51.100.7"))).interfaces.matches("eth0")


def test_a_name_that_only_begins_alike_is_not_matched(layout: Layout, backend: RedirectBackend) -> None:
    near = "dock" if layout.interface == "docker0" else f"{layout.interface[:-1]}x+"
    ensure(layout, backend, rule_for(layout, interface=near))
    for address in METADATA:
        assert ask(layout.pod, address) == "real"


def test_removal_leaves_nothing_of_ours_and_all_of_others(layout: Layout, backend: RedirectBackend) -> None:
    execute(layout.node, "iptables-legacy", "-t", "nat", "-N", "KUBE-SERVICES")
    execute(layout.node, "iptables-legacy", "-t", "filter", "-A", "FORWARD", "-j", "ACCEPT")
    execute(layout.node, "nft", "add", "table", "ip", "others")
    execute(layout.node, "ip6tables-legacy", "-t", "nat", "-L")
    before = _rules(layout)
    ensure(layout, backend, rule_for(layout))
    assert _rules(layout) != before
    assert layout.run(backend.remove)
    assert not layout.run(backend.remove)
    assert not status(layout, backend).present
    assert _rules(layout) == before


OLDER = {"nft": ("iptables-legacy", "iptables-nft"), "legacy": ("iptables-legacy",)}
"""Whose rules each backend comes before. The two iptables share one priority, so there the older one may win."""


def test_the_agent_wins_over_an_older_kube2iam(layout: Layout, backend: RedirectBackend) -> None:
    for program in OLDER[backend.name]:
        execute(layout.node, *_go_rule(program, layout.interface))
    assert ask(layout.pod, METADATA4) == "refused", "the older agent is gone"
    ensure(layout, backend, rule_for(layout))
    assert ask(layout.pod, METADATA4) == "agent"
    found = status(layout, backend)
    assert found.present
    assert any("not ours" in line for line in found.lines), "and its rule is pointed out"
    layout.run(backend.remove)
    assert ask(layout.pod, METADATA4) == "refused", "which stays, since it is not ours"


def test_what_another_backend_left_is_cleared(layout: Layout, backend: RedirectBackend) -> None:
    (other,) = others(backend)
    ensure(layout, other, rule_for(layout, port=9999))
    with kept(layout, backend, rule_for(layout)):
        assert ask(layout.pod, METADATA4) == "agent"
    assert not status(layout, other).present


def test_a_flush_by_someone_else_is_mended(layout: Layout, backend: RedirectBackend) -> None:
    with kept(layout, backend, rule_for(layout)) as drifted:
        assert ask(layout.pod, METADATA4) == "agent"
        for command in FLUSHES[backend.name]:
            with contextlib.suppress(subprocess.CalledProcessError):  # -X fails where the keeper was quicker than it
                execute(layout.node, *command)
        assert drifted.wait(PATIENCE)
    for address in METADATA:
        assert ask(layout.pod, address) == "agent"
    assert status(layout, backend).present


EDITS = {
    "nft": [
        "nft delete table ip6 kube2iam",
        "nft flush chain ip kube2iam guard",
        "nft insert rule ip kube2iam to_agent return",
        "nft add chain ip kube2iam more",
        "nft chain ip kube2iam forward { policy drop; }",
    ],
    "legacy": [
        "iptables-legacy -t nat -F PREROUTING",
        "iptables-legacy -F FORWARD",
        "ip6tables-legacy -t nat -I KUBE2IAM -j RETURN",
        "iptables-legacy -t nat -D KUBE2IAM 1",
        f"iptables-legacy -t nat -I PREROUTING -d {METADATA4} -j ACCEPT",
        "iptables-legacy -t nat -A PREROUTING -j KUBE2IAM",
        "iptables-legacy -I KUBE2IAM -s 10.0.0.0/8 -m comment --comment x -j ACCEPT",
    ],
}


@pytest.mark.parametrize("built", ["calico"], indirect=True)
@pytest.mark.parametrize(("name", "edit"), [(name, edit) for name, edits in EDITS.items() for edit in edits])
def test_any_edit_is_noticed_and_mended(layout: Layout, name: str, edit: str) -> None:
    backend, rule = BACKENDS[name](), rule_for(layout)
    ensure(layout, backend, rule)
    untouched = _rules(layout)
    execute(layout.node, *edit.split())
    assert ensure(layout, backend, rule)
    assert ensure(layout, backend, rule) == ""
    assert status(layout, backend).present
    assert set(_rules(layout)) - set(untouched) <= {f"-A PREROUTING -d {METADATA4}/32 -j ACCEPT"}
    assert not set(untouched) - set(_rules(layout))


def test_nft_can_be_driven_from_the_agents_own_loop(layout: Layout) -> None:
    """uvloop's pipes are sockets, which nft cannot read its commands from."""
    rule = rule_for(layout)
    assert inside(layout.node, lambda: uvloop.run(BACKENDS["nft"]().ensure(rule)))
    assert ask(layout.pod, METADATA4) == "agent"


def test_a_saved_ruleset_can_be_loaded_again(layout: Layout) -> None:
    """No name of ours is a word of nft's own language."""
    ensure(layout, BACKENDS["nft"](), rule_for(layout))
    saved = execute(layout.node, "nft", "list", "ruleset")
    execute(layout.node, "sh", "-c", f"nft flush ruleset && nft -f - <<'END'\n{saved}\nEND")
    assert ensure(layout, BACKENDS["nft"](), rule_for(layout)) == ""


AS_WRITTEN = {
    "iptables-legacy": {
        "nat": [
            f"-A PREROUTING -d {METADATA4}/32 -p tcp -m tcp --dport 80 -j KUBE2IAM",
            "-A KUBE2IAM -i eth0 -j RETURN",
            "-A KUBE2IAM -i lo -j RETURN",
            f"-A KUBE2IAM -i cali+ -p tcp -j DNAT --to-destination {NODE4}:8181",
            f"-A KUBE2IAM -i tap0 -p tcp -j DNAT --to-destination {NODE4}:8181",
        ],
        "filter": [
            f"-A INPUT -d {METADATA4}/32 -p tcp -m tcp --dport 80 -j KUBE2IAM",
            f"-A FORWARD -d {METADATA4}/32 -p tcp -m tcp --dport 80 -j KUBE2IAM",
            "-A KUBE2IAM -i eth0 -j RETURN",
            "-A KUBE2IAM -i lo -j RETURN",
            "-A KUBE2IAM -i cali+ -p tcp -j REJECT --reject-with tcp-reset",
            "-A KUBE2IAM -i tap0 -p tcp -j REJECT --reject-with tcp-reset",
        ],
    },
    "ip6tables-legacy": {
        "nat": [
            f"-A PREROUTING -d {METADATA6}/128 -p tcp -m tcp --dport 80 -j KUBE2IAM",
            "-A KUBE2IAM -i eth0 -j RETURN",
            "-A KUBE2IAM -i lo -j RETURN",
            f"-A KUBE2IAM -i cali+ -p tcp -j DNAT --to-destination [{NODE6}]:8181",
            f"-A KUBE2IAM -i tap0 -p tcp -j DNAT --to-destination [{NODE6}]:8181",
        ],
    },
}


@pytest.mark.parametrize("built", ["calico"], indirect=True)
def test_iptables_writes_the_same_bytes(layout: Layout) -> None:
    """The same rules by iptables itself: nothing to mend; and iptables prints ours as one would write them."""
    backend, rule = BACKENDS["legacy"](), rule_for(layout, interface="cali+,tap0,!eth0")
    ensure(layout, backend, rule)
    for program, tables in AS_WRITTEN.items():
        for table, lines in tables.items():
            printed = execute(layout.node, program, "-t", table, "-S").splitlines()
            assert [line for line in printed if line.startswith("-A")] == lines
            execute(layout.node, program, "-t", table, "-F")
            for line in lines:
                execute(layout.node, program, "-t", table, *line.split())
    assert ensure(layout, backend, rule) == ""


def test_a_missing_lock_or_a_held_one_is_said(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, rule = BACKENDS["legacy"](), rule_for(layout)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "missing" / "lock"))
    with pytest.raises(RedirectError, match="the pod must mount this file of the node"):
        ensure(layout, backend, rule)
    lock = tmp_path / "lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    monkeypatch.setattr(legacy, "_LOCK_TIMEOUT", 0.0)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RedirectError, match="was held by another program"):
            ensure(layout, backend, rule)
    assert ensure(layout, backend, rule)


@pytest.mark.parametrize("built", ["calico"], indirect=True)
def test_calico_may_keep_its_own_jump_in_front(layout: Layout) -> None:
    """Felix puts it back to the top at each of its own checks; that is no reason to fight, or to count a drift."""
    backend, rule = BACKENDS["legacy"](), rule_for(layout)
    ensure(layout, backend, rule)
    execute(layout.node, "iptables-legacy", "-t", "nat", "-N", "cali-PREROUTING")
    execute(layout.node, "iptables-legacy", "-t", "nat", "-I", "PREROUTING", "-j", "cali-PREROUTING")
    assert ensure(layout, backend, rule) == ""
    assert ask(layout.pod, METADATA4) == "agent"


class Drifts(threading.Event):
    """Told by the keeper."""

    def redirect_drift(self) -> None:
        self.set()


@contextlib.contextmanager
def kept(layout: Layout, backend: RedirectBackend, rule: RedirectRule) -> Iterator[Drifts]:
    """A keeper at work as a process of the host, with a short period; what it yields is set at the first drift."""
    drifts, ready, over = Drifts(), threading.Event(), threading.Event()

    async def keep() -> None:
        keeper = RedirectKeeper(backend, lambda: rule, period=0.05, metrics=drifts, leftovers=others(backend))
        assert await keeper.ensure()
        ready.set()
        running = asyncio.create_task(keeper.run())
        await asyncio.to_thread(over.wait)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert await keeper.ensure(), "the check that would come next"

    thread = threading.Thread(target=layout.run, args=(keep,))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield drifts
    finally:
        over.set()
        thread.join(PATIENCE)


def _go_rule(program: str, interface: str) -> list[str]:
    """What Go kube2iam appends."""
    match = ["-p", "tcp", "-d", METADATA4, "--dport", "80", "-i", interface]
    return [program, "-t", "nat", "-A", "PREROUTING", *match, "-j", "DNAT", "--to-destination", f"{NODE4}:9999"]


def _rules(layout: Layout) -> list[str]:
    """Every rule and chain in the node, as lines without counters and comments."""
    programs = (["iptables-legacy-save"], ["ip6tables-legacy-save"], ["nft", "list", "ruleset"])
    lines = "".join(execute(layout.node, *program) for program in programs).splitlines()
    return [line.split("[")[0].strip() for line in lines if not line.startswith("#")]
