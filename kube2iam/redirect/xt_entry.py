"""Rules of the legacy iptables as the bytes that the kernel keeps. Pure: packs an entry and reads it back.

python-iptables' own Rule, Match and Target are not used, for three reasons that were found by trying them (1.2.0 with
iptables 1.8.9): its IPv6 interface match compares one bit of each letter, so that `cali+` fits names that it should
not; a DNAT target cannot be had for IPv6 once one was made for IPv4; and each target instantiates all five tables.
What libiptc itself takes is this layout, which has not changed since Linux 2.6:
https://github.com/torvalds/linux/blob/master/include/uapi/linux/netfilter_ipv4/ip_tables.h
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from kube2iam.redirect.rule import METADATA_PORT, Family

_ALIGN = struct.calcsize("@cQ") - struct.calcsize("@Q")
_NAME_BYTES = 16
_HEADS = {
    # addresses and masks (source, destination), interface names and masks (in, out), protocol, [tos,] flags, inversions
    Family.IPV4: struct.Struct("@4s4s4s4s16s16s16s16sHBBIHHIQQ"),
    Family.IPV6: struct.Struct("@16s16s16s16s16s16s16s16sHBBBIHHIQQ"),
}
_HAS_PROTOCOL = {Family.IPV4: (0,), Family.IPV6: (0, 1)}
"""The flags of an entry that names a protocol; IPv6 has a type-of-service byte first and marks the protocol."""
_EXTENSION = struct.Struct("@H29sB")
"""xt_entry_match and xt_entry_target: size, name, revision."""
_TCP = struct.Struct("@HHHHBBBB")
_VERDICT = struct.Struct("@i")
_NAT_RANGE = struct.Struct("@I16s16s2s2s2s")
"""nf_nat_range2, of DNAT's second revision (Linux 4.18): flags, lowest and highest address, ports, base port."""
_DNAT_REVISION = 2
_MAP_ADDRESS_AND_PORT = 3
_TCP_RESET = {Family.IPV4: 7, Family.IPV6: 6}
_ANY_PORT = 65535
_DATA_BYTES = {"tcp": _TCP.size, "DNAT": _NAT_RANGE.size, "REJECT": _VERDICT.size}
"""How much of an extension's data the kernel gives back."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Go on in the chain `to`, or back (`RETURN`)."""

    to: str


@dataclass(frozen=True, slots=True)
class Dnat:
    """Lead the connection to `address`, `port`."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Reset:
    """Refuse the connection at once."""


Target = Jump | Dnat | Reset
RETURN = Jump("RETURN")


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule. `tcp` and `metadata` narrow it to TCP, and to TCP for the metadata address and port."""

    target: Target
    interface: str | None = None
    """As in iptables, with `+` at the end for any rest; None for every interface."""
    tcp: bool = False
    metadata: bool = False

    def pack(self, family: Family) -> bytes:
        """The bytes to hand to libiptc. A jump is named; libiptc turns the name into an offset."""
        match = _tcp_match() if self.metadata else b""
        target = _pack_target(self.target, family)
        return self._head(family, len(match), len(target)) + match + target

    def _head(self, family: Family, match: int, target: int) -> bytes:
        address = ip_address(family.metadata).packed
        none = bytes(len(address))
        wanted = (address, b"\xff" * len(address)) if self.metadata else (none, none)
        name, mask = _interface_bytes(self.interface)
        empty = bytes(_NAME_BYTES)
        head = _HEADS[family]
        protocol = socket.IPPROTO_TCP if self.tcp or self.metadata else 0
        flags = _HAS_PROTOCOL[family] if protocol else (0,) * len(_HAS_PROTOCOL[family])
        return head.pack(
            *(none, wanted[0], none, wanted[1]),
            *(name, empty, mask, empty),
            *(protocol, *flags, 0),
            *(0, head.size + match, head.size + match + target, 0, 0, 0),
        )


def clean(raw: bytes, target: str, family: Family) -> bytes:
    """What of an entry from the kernel counts, to compare with `Entry.pack`: not counters, and a jump by its name.

    `target` is what libiptc calls the entry's target: a chain, a verdict or an extension. Bytes behind the end of a
    name, or that an extension keeps for the kernel, are whatever memory held before; they are zeros here.
    """
    head = _HEADS[family]
    fields = list(head.unpack_from(raw))
    fields[4], fields[6] = _interface_bytes(_interface_text(fields[4], fields[6]))
    fields[-6], fields[-3:] = 0, [0, 0, 0]
    tail = b""
    for name, revision, data in _extensions(raw[head.size : fields[-4]]):
        tail += _extension(name, revision, data) if name else _pack_target(Jump(target), family)
    return head.pack(*fields) + tail


def interface_of(raw: bytes, family: Family) -> str | None:
    """The interface pattern of an entry, as in iptables."""
    fields = _HEADS[family].unpack_from(raw)
    return _interface_text(fields[4], fields[6])


def metadata_of(raw: bytes, family: Family) -> bool:
    """Whether an entry is about the metadata address alone."""
    fields = _HEADS[family].unpack_from(raw)
    return bool(fields[1] == ip_address(family.metadata).packed and fields[3] == b"\xff" * len(fields[3]))


def dnat_of(raw: bytes, family: Family) -> Dnat | None:
    """Where an entry leads connections to, if that is what it does and the way that `Entry` packs it."""
    *_, (name, revision, data) = _extensions(raw[_HEADS[family].size :])
    if (name, revision) != ("DNAT", _DNAT_REVISION):
        return None
    _, lowest, _, port, _, _ = _NAT_RANGE.unpack(data)
    length = len(ip_address(family.metadata).packed)
    return Dnat(str(ip_address(lowest[:length])), int.from_bytes(port))


def _interface_text(name: bytes, mask: bytes) -> str | None:
    """The pattern that `_interface_bytes` made these bytes of; letters behind the mask do not count."""
    counted = mask.count(b"\xff")
    text = name[:counted].rstrip(b"\0").decode(errors="replace")
    return (f"{text}+" if len(text) == counted else text) if counted else None


def _interface_bytes(pattern: str | None) -> tuple[bytes, bytes]:
    """The name and the mask of the bytes of it that count: all and the end for a whole name, no end for a `+`."""
    if pattern is None:
        return bytes(_NAME_BYTES), bytes(_NAME_BYTES)
    prefix = pattern.removesuffix("+").encode()
    counted = len(prefix) + (pattern.removesuffix("+") == pattern)
    return prefix.ljust(_NAME_BYTES, b"\0"), (b"\xff" * counted).ljust(_NAME_BYTES, b"\0")


def _tcp_match() -> bytes:
    return _extension("tcp", 0, _TCP.pack(0, _ANY_PORT, METADATA_PORT, METADATA_PORT, 0, 0, 0, 0))


def _pack_target(target: Target, family: Family) -> bytes:
    match target:
        case Jump(to):
            return _extension(to, 0, _VERDICT.pack(0))
        case Dnat(address, port):
            packed, ports = ip_address(address).packed, port.to_bytes(2)
            return _extension(
                "DNAT", _DNAT_REVISION, _NAT_RANGE.pack(_MAP_ADDRESS_AND_PORT, packed, packed, ports, ports, b"")
            )
        case Reset():
            return _extension("REJECT", 0, _VERDICT.pack(_TCP_RESET[family]))


def _extension(name: str, revision: int, data: bytes) -> bytes:
    size = -(-(_EXTENSION.size + len(data)) // _ALIGN) * _ALIGN
    return (_EXTENSION.pack(size, name.encode(), revision) + data).ljust(size, b"\0")


def _extensions(raw: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Name, revision and data of each match and, last, of the target; no name for a jump."""
    while raw:
        size, name, revision = _EXTENSION.unpack_from(raw)
        text = name.split(b"\0")[0].decode(errors="replace")
        yield text, revision, raw[_EXTENSION.size : size][: _DATA_BYTES.get(text)]
        raw = raw[size:]
