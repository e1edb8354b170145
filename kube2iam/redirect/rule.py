"""What the kernel is to do, as a value: which traffic, from which interfaces, goes where. Pure; touches no kernel.

The metadata service has two addresses and one port:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Self

METADATA_PORT = 80
_LOOPBACK = "lo"
_AUTO = "auto"
_NAME = re.compile(r"[^\s/:!,+*\"\\]{1,15}")
"""A name that the kernel allows (15 bytes, no slash, colon or space) and that needs no quoting in nftables."""
_PREFIX = re.compile(r"[^\s/:!,+*\"\\]{0,14}\+")


class RedirectError(Exception):
    """The kernel cannot be made to redirect. The message is one line that names the cause and the mend."""


class MissingToolError(RedirectError):
    """A backend's program or library is not installed here."""


class Family(Enum):
    """An address family: its table name in nftables and the metadata service's address in it."""

    IPV4 = "ip", "169.254.169.254"
    IPV6 = "ip6", "fd00:ec2::254"

    def __init__(self, table: str, metadata: str) -> None:
        self.table = table
        self.metadata = metadata


@dataclass(frozen=True, slots=True)
class Interfaces:
    """Where pods' packets come in. A trailing `+` stands for any rest of the name, as in iptables.

    A packet counts as a pod's if its interface matches one of `included` (empty: any) and none of `excluded`.
    """

    included: tuple[str, ...] = ()
    excluded: tuple[str, ...] = (_LOOPBACK,)
    auto: bool = False
    """`excluded` still has to be completed with the node's uplinks: see `without`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `--host-interface`: names, `+` wildcards, `!` negations and `auto`, separated by commas.

        The loopback interface carries the host's own packets only, so it takes part only where it is named. Raises
        RedirectError.
        """
        parts = [part.strip() for part in text.split(",")]
        auto = _AUTO in parts
        included = _unique(part for part in parts if not part.startswith("!") and part != _AUTO)
        excluded = _unique(part[1:].lstrip() for part in parts if part.startswith("!"))
        for pattern in (*included, *excluded):
            _check(pattern, text)
        if auto and included:
            raise RedirectError(f"--host-interface {text!r}: auto finds the interfaces itself; name none beside it")
        if "+" in excluded:
            raise RedirectError(f"--host-interface {text!r}: !+ leaves no interface to redirect from")
        if "+" in included:
            included = ()
        if _LOOPBACK not in included and _LOOPBACK not in excluded:
            excluded = (*excluded, _LOOPBACK)
        return cls(included, excluded, auto)

    def without(self, names: Iterable[str]) -> Self:
        """These interfaces and not `names`: what `auto` comes to once the node's uplinks are known."""
        return replace(self, excluded=_unique((*self.excluded, *sorted(names))), auto=False)

    def matches(self, name: str) -> bool:
        """Whether a packet that came in at the interface `name` is a pod's."""
        included = not self.included or any(_fits(pattern, name) for pattern in self.included)
        return included and not any(_fits(pattern, name) for pattern in self.excluded)

    def __str__(self) -> str:
        shown = [_AUTO] if self.auto else list(self.included)
        return ",".join([*shown, *(f"!{pattern}" for pattern in self.excluded)])


@dataclass(frozen=True, slots=True)
class RedirectRule:
    """Pods' TCP traffic for the metadata addresses goes to `destinations`, port `port`, of this node.

    A family that has no destination is refused there instead: its metadata address is never left open.
    """

    interfaces: Interfaces
    port: int
    ipv4: str | None = None
    ipv6: str | None = None

    @classmethod
    def of(cls, host_ips: Collection[str], port: int, interface: str) -> Self:
        """The rule that `--host-ip`, `--app-port` and `--host-interface` ask for; raises RedirectError."""
        if not host_ips:
            raise RedirectError(
                "--host-ip must be set: it is the node's address that pods are redirected to "
                "(in a DaemonSet, HOST_IP from status.hostIP)"
            )
        addresses = [_destination(text) for text in host_ips]
        four = [str(address) for address in addresses if isinstance(address, IPv4Address)]
        six = [str(address) for address in addresses if isinstance(address, IPv6Address)]
        if len(four) > 1 or len(six) > 1:
            raise RedirectError(f"--host-ip {','.join(host_ips)}: at most one IPv4 and one IPv6 address")
        return cls(Interfaces.parse(interface), port, next(iter(four), None), next(iter(six), None))

    @classmethod
    def for_family(cls, family: Family, interfaces: Interfaces, *, address: str | None, port: int) -> Self:
        """A rule as far as one family goes: what is read back from the kernel, table by table."""
        four, six = (address, None) if family is Family.IPV4 else (None, address)
        return cls(interfaces, port, four, six)

    def destination(self, family: Family) -> str | None:
        """The node's address that `family` is led to, or None where it is refused."""
        return self.ipv4 if family is Family.IPV4 else self.ipv6

    def __str__(self) -> str:
        return f"{self.interfaces} -> {self.where(Family.IPV4)}, {self.where(Family.IPV6)}"

    def where(self, family: Family) -> str:
        """Where `family` goes, for people: `10.0.0.1:8181`, `[fd00::1]:8181` or `refused`."""
        address = self.destination(family)
        if address is None:
            return "refused"
        return f"[{address}]:{self.port}" if family is Family.IPV6 else f"{address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Status:
    """What a backend found in the kernel, for people."""

    present: bool
    """The rule is there, whole, in every family that this node speaks."""
    lines: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        backend: str,
        found: Mapping[Family, RedirectRule | None],
        *,
        families: Collection[Family],
        foreign: Iterable[str] = (),
    ) -> Self:
        """From what `backend` found of its own, by family; None for what is damaged. `foreign` are others' rules."""
        lines = [_describe(family, found) for family in families if found]
        shown = [*lines, *(f"not ours, in {rule}" for rule in foreign)] or ["nothing"]
        present = all(found.get(family) for family in families)
        return cls(present, tuple(f"{backend}: {line}" for line in shown))


def _describe(family: Family, found: Mapping[Family, RedirectRule | None]) -> str:
    if family not in found:
        return f"{family.metadata} is open: there is no rule for it; kube2iam redirect install mends it"
    rule = found[family]
    if rule is None:
        return f"{family.metadata}: the rules are not as kube2iam writes them; kube2iam redirect install mends them"
    return f"{family.metadata} from {rule.interfaces} -> {rule.where(family)}"


def _destination(text: str) -> IPv4Address | IPv6Address:
    """An address that packets from a pod can be delivered to on this node; raises RedirectError."""
    try:
        address = ip_address(text)
    except ValueError:
        raise RedirectError(f"--host-ip {text!r} is not an IP address") from None
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        raise RedirectError(f"--host-ip {text}: pods cannot reach that address; give one of the node's own")
    if str(address) in {family.metadata for family in Family}:
        raise RedirectError(f"--host-ip {text} is the metadata service itself; give one of the node's own addresses")
    return address


def _check(pattern: str, text: str) -> None:
    if not _NAME.fullmatch(pattern) and not _PREFIX.fullmatch(pattern):
        raise RedirectError(
            f"--host-interface {text!r}: {pattern!r} is not an interface's name; expected auto or a comma list of "
            "names of at most 15 characters, with + at the end for any rest and ! in front for all but"
        )


def _fits(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
