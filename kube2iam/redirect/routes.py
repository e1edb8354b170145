"""Which interface the kernel would use for an address, asked over rtnetlink; and what `auto` means on this node.

Message layout: https://man7.org/linux/man-pages/man7/rtnetlink.7.html
"""

import logging
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from kube2iam.redirect.rule import Family, Interfaces, RedirectRule

log = logging.getLogger(__name__)

_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_RTM_GETROUTE = 26
_RTN_UNICAST = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 1, 4, 5, 18
_ANSWER_BYTES = 8192
_TIMEOUT = 2.0
"""Seconds; the kernel answers within the call, so that this is only for what cannot happen."""

_ANYWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849): only a default route leads there."""

_IPV6_STACK = Path("/proc/thread-self/net/if_inet6")


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an address. `direct`: without a gateway in between, so that its owner is attached to this node."""

    interface: str
    direct: bool


def follow(rule: RedirectRule, pods: Callable[[], Collection[str]]) -> Callable[[], RedirectRule]:
    """What gives `rule` with its interfaces as they are now; `pods` gives the addresses of this node's pods."""
    if not rule.interfaces.auto:
        return lambda: rule
    return lambda: replace(rule, interfaces=automatic(rule.interfaces, pods(), route_to))


def automatic(interfaces: Interfaces, pods: Collection[str], route: Callable[[str], Route | None]) -> Interfaces:
    """Every interface but the loopback and the node's uplinks, the ones that a default route leaves by.

    Wider than the interfaces that carry pods' routes at the moment, on purpose: a pod that starts on a new veth is
    redirected from its first packet, not from the next check. An uplink counts as a pods' interface if a pod hangs
    directly on it (a bridge that the node's own network card belongs to).
    """
    outward = uplinks(route)
    if not outward:
        return interfaces.without(())
    direct = {found.interface for address in pods if (found := route(address)) and found.direct}
    return interfaces.without(outward - direct)


def uplinks(route: Callable[[str], Route | None]) -> set[str]:
    """The interfaces that a default route leaves by."""
    return {found.interface for address in _ANYWHERE if (found := route(address))}


def families(rule: RedirectRule | None = None) -> tuple[Family, ...]:
    """The families that need rules: on a kernel without IPv6 there is nothing to refuse in it."""
    if (rule is None or rule.ipv6 is None) and not _IPV6_STACK.exists():
        return (Family.IPV4,)
    return (Family.IPV4, Family.IPV6)


def route_to(address: str) -> Route | None:
    """The kernel's own choice, policy rules included; None where it has none."""
    target = ip_address(address)
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, len(target.packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(target.packed), _RTA_DST) + target.packed
    head = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
            netlink.settimeout(_TIMEOUT)
            netlink.send(head + body)
            return _read(netlink.recv(_ANSWER_BYTES))
    except OSError as error:
        log.debug("the kernel was not asked for a route", extra={"error": str(error)})
        return None


def _read(answer: bytes) -> Route | None:
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        return None
    route = _ROUTE.unpack_from(answer, _HEADER.size)
    attributes = dict(_attributes(answer[_HEADER.size + _ROUTE.size :]))
    if route[7] != _RTN_UNICAST or _RTA_OIF not in attributes:
        return None
    (index,) = struct.unpack("=I", attributes[_RTA_OIF])
    return Route(socket.if_indextoname(index), _RTA_GATEWAY not in attributes and _RTA_VIA not in attributes)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
