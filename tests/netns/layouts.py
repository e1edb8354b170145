"""Small nodes in network namespaces: the layouts of pods that users have, with the real metadata service behind them.

    real   the metadata addresses, as EC2 would answer there          169.254.169.254, fd00:ec2::254
     |
    node   the host's network: uplink eth0, forwarding, pods' links    10.9.0.2, fd00:9::2
     |
    pod    its own address, everything by way of the node              10.10.0.2, fd00:10::2

All names begin with `k2i-` and the process's number; leaving a layout removes everything, also after a failure.
"""

import asyncio
import contextlib
import ctypes
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

METADATA4, METADATA6 = "169.254.169.254", "fd00:ec2::254"
REAL4, REAL6 = "10.9.0.1", "fd00:9::1"
NODE4, NODE6 = "10.9.0.2", "fd00:9::2"
GATEWAY4, GATEWAY6 = "10.10.0.1", "fd00:10::1"
POD4, POD6 = "10.10.0.{}", "fd00:10::{}"
AGENT_PORT = 8181
OTHER_PORT = 8080
PATIENCE = 5.0
"""Seconds after which a connection counts as hanging. Namespaces answer within a millisecond."""

_CLONE_NEWNET = 0x40000000
_CALICO_MAC = "ee:ee:ee:ee:ee:ee"
_CALICO_GATEWAY6 = "fe80::ecee:eeff:feee:eeee"
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def inside(namespace: str, act: Callable[[], T]) -> T:
    """What `act` returns when it runs in `namespace`, in a thread of its own."""

    def enter() -> T:
        with Path(f"/run/netns/{namespace}").open() as file:
            if _libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
        return act()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter).result()


def execute(namespace: str, *command: str) -> str:
    """What a program prints in `namespace`; raises CalledProcessError."""
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *command], check=True, capture_output=True, text=True, timeout=20
    ).stdout


@dataclass
class Network:
    """Namespaces and the servers in them."""

    names: list[str] = field(default_factory=list)
    servers: list["Server"] = field(default_factory=list)

    def add(self, role: str) -> str:
        """A namespace with forwarding, no source checks, and addresses that serve at once."""
        name = f"k2i-{os.getpid()}-{next(_numbers)}-{role}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
        self.names.append(name)
        for path, value in (
            ("ipv4/ip_forward", 1),
            ("ipv4/conf/all/rp_filter", 0),
            ("ipv4/conf/default/rp_filter", 0),
            ("ipv6/conf/all/accept_dad", 0),
            ("ipv6/conf/default/accept_dad", 0),
            ("ipv6/conf/all/forwarding", 1),
        ):
            sysctl(name, path, value)
        ip(name, "link set lo up")
        return name

    def serve(self, namespace: str, address: str, port: int, says: str) -> None:
        """A server in `namespace` that greets with `says` and then sends back what it gets."""
        self.servers.append(Server(namespace, address, port, says))

    def close(self) -> None:
        """Leave nothing."""
        for server in self.servers:
            server.close()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=True, timeout=20)


def ip(namespace: str, *lines: str) -> None:
    """Carry out `ip` commands in `namespace`."""
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input="\n".join(lines), check=True, text=True, timeout=20)


def sysctl(namespace: str, path: str, value: int) -> None:
    """Set /proc/sys/net/`path` in `namespace`."""
    inside(namespace, lambda: Path("/proc/sys/net", path).write_text(str(value)))


class Server:
    """Greets, then echoes, on a socket that was made in a namespace."""

    def __init__(self, namespace: str, address: str, port: int, says: str) -> None:
        self._says = f"{says}\n".encode()
        self._open: list[socket.socket] = []
        self._listener = inside(namespace, lambda: socket.create_server((address, port), family=family_of(address)))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(self._says)
            while data := connection.recv(1024):
                connection.sendall(data)
            connection.close()

    def close(self) -> None:
        """End it and its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def family_of(address: str) -> socket.AddressFamily:
    """The family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextlib.contextmanager
def connection(namespace: str, address: str, port: int = 80) -> Iterator[socket.socket]:
    """A connection from `namespace`; raises as connect does, TimeoutError after PATIENCE."""
    with inside(namespace, lambda: socket.socket(family_of(address), socket.SOCK_STREAM)) as client:
        client.settimeout(PATIENCE)
        client.connect((address, port))
        yield client


def ask(namespace: str, address: str, port: int = 80) -> str:
    """Who answers at `address` for a client in `namespace`: the server's greeting, `refused` or `silence`."""
    try:
        with connection(namespace, address, port) as client:
            return client.recv(1024).decode().strip()
    except (ConnectionRefusedError, ConnectionResetError):
        return "refused"
    except TimeoutError:
        return "silence"


@dataclass
class Layout:
    """A node with one pod, built one way. `interface` is what `--host-interface` should say there."""

    name: str
    interface: str
    network: Network
    real: str
    node: str
    attach: Callable[["Layout", int, str], None]
    pods: list[str] = field(default_factory=list)

    @property
    def pod(self) -> str:
        """The first pod's namespace."""
        return self.pods[0]

    def add_pod(self) -> str:
        """One more pod, as the cluster network would set it up; its namespace."""
        namespace = self.network.add(f"pod{len(self.pods)}")
        number = len(self.pods) + 2
        self.pods.append(namespace)
        self.attach(self, number, namespace)
        return namespace

    def run(self, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine returns that runs as a process of the host would, with a loop of its own."""
        return inside(self.node, lambda: asyncio.run(act()))


def attach_to_bridge(layout: Layout, number: int, pod: str) -> None:
    """As Docker, kubenet and the bridge plug-in do: one layer-2 network, the node's address on it as gateway."""
    link = f"veth{number}"
    ip(layout.node, f"link add {link} type veth peer name eth0 netns {pod}", f"link set {link} master docker0 up")
    ip(
        pod,
        f"addr add {POD4.format(number)}/24 dev eth0",
        f"addr add {POD6.format(number)}/64 dev eth0 nodad",
        "link set eth0 up",
        f"route add default via {GATEWAY4}",
        f"route add default via {GATEWAY6}",
    )


def attach_as_calico(layout: Layout, number: int, pod: str) -> None:
    """As Calico does: a /32, the gateway 169.254.1.1 that only proxy ARP answers for, a route per pod."""
    link = f"cali{number:011x}"
    ip(
        layout.node,
        f"link add {link} address {_CALICO_MAC} type veth peer name eth0 netns {pod}",
        f"link set {link} up",
    )
    sysctl(layout.node, f"ipv4/conf/{link}/proxy_arp", 1)
    sysctl(layout.node, f"ipv4/neigh/{link}/proxy_delay", 0)
    four, six = POD4.format(number), POD6.format(number)
    ip(
        pod,
        f"addr add {four}/32 dev eth0",
        f"addr add {six}/128 dev eth0 nodad",
        "link set eth0 up",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
        f"route add default via {_CALICO_GATEWAY6} dev eth0",
    )
    ip(layout.node, f"route add {four}/32 dev {link} scope link", f"route add {six}/128 dev {link}")


def attach_as_vpc(layout: Layout, number: int, pod: str) -> None:
    """As the AWS VPC CNI does: a /32, a fixed neighbour as gateway, and policy routing out of a second interface."""
    link = f"eni{number:011x}"
    mac = f"0a:00:00:00:00:{number:02x}"
    ip(layout.node, f"link add {link} address {mac} type veth peer name eth0 netns {pod}", f"link set {link} up")
    four, six = POD4.format(number), POD6.format(number)
    ip(
        pod,
        f"addr add {four}/32 dev eth0",
        f"addr add {six}/128 dev eth0 nodad",
        "link set eth0 up",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
        f"neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent",
        "route add fe80::1 dev eth0",
        "route add default via fe80::1 dev eth0",
        f"neigh add fe80::1 lladdr {mac} dev eth0 nud permanent",
    )
    ip(
        layout.node,
        f"route add {four}/32 dev {link} scope link",
        f"route add {six}/128 dev {link}",
        f"rule add pref 512 to {four} lookup main",
        f"rule add pref 1536 from {four} lookup 2",
    )


@contextlib.contextmanager
def bridge() -> Iterator[Layout]:
    """Pods behind docker0."""
    with _node("bridge", "docker0", attach_to_bridge) as layout:
        ip(
            layout.node,
            "link add docker0 address 02:42:0a:0a:00:01 type bridge",  # as Docker: else it changes with each port
            f"addr add {GATEWAY4}/24 dev docker0",
            f"addr add {GATEWAY6}/64 dev docker0 nodad",
            "link set docker0 up",
        )
        layout.add_pod()
        yield layout


@contextlib.contextmanager
def calico() -> Iterator[Layout]:
    """Pods behind routed cali+ links."""
    with _node("calico", "cali+", attach_as_calico) as layout:
        layout.add_pod()
        yield layout


@contextlib.contextmanager
def vpc() -> Iterator[Layout]:
    """Pods behind eni+ links, whose traffic leaves by eth1."""
    with _node("vpc", "eni+", attach_as_vpc) as layout:
        ip(layout.node, f"link add eth1 type veth peer name node1 netns {layout.real}", "addr add 10.9.1.2/24 dev eth1")
        ip(layout.real, "addr add 10.9.1.1/24 dev node1", "link set node1 up")
        ip(layout.node, "link set eth1 up", "route add default via 10.9.1.1 dev eth1 table 2")
        layout.add_pod()
        yield layout


LAYOUTS = {"bridge": bridge, "calico": calico, "vpc": vpc}


@contextlib.contextmanager
def _node(name: str, interface: str, attach: Callable[[Layout, int, str], None]) -> Iterator[Layout]:
    network = Network()
    try:
        real, node = network.add("real"), network.add("node")
        _link_up(real, node)
        for address in (METADATA4, METADATA6):
            network.serve(real, address, 80, "real")
            network.serve(real, address, OTHER_PORT, "other port")
        for address in (REAL4, REAL6):
            network.serve(real, address, 80, "other address")
        for address in (NODE4, NODE6):
            network.serve(node, address, AGENT_PORT, "agent")
        yield Layout(name, interface, network, real, node, attach)
    finally:
        network.close()


def _link_up(real: str, node: str) -> None:
    """The node's uplink, and the metadata addresses at its other end."""
    ip(
        node,
        f"link add eth0 type veth peer name node0 netns {real}",
        f"addr add {NODE4}/24 dev eth0",
        f"addr add {NODE6}/64 dev eth0 nodad",
        "link set eth0 up",
    )
    ip(
        real,
        f"addr add {METADATA4}/32 dev lo",
        f"addr add {METADATA6}/128 dev lo nodad",
        f"addr add {REAL4}/24 dev node0",
        f"addr add {REAL6}/64 dev node0 nodad",
        "link set node0 up",
        f"route add {POD4.format(0)}/24 via {NODE4}",
        f"route add {POD6.format('')}/64 via {NODE6}",
    )
    ip(node, f"route add default via {REAL4}", f"route add default via {REAL6}")
