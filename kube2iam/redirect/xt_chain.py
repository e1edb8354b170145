"""Our chain, `KUBE2IAM`, in a table of the legacy iptables: what it holds, whether it is whole, how it is written.

    nat     PREROUTING      metadata traffic -> KUBE2IAM: the host's own and excluded interfaces return; pods': DNAT
    filter  FORWARD, INPUT  metadata traffic -> KUBE2IAM: the same interfaces: TCP reset (the guard, see nft_table)

Our jumps stand first in their chains, whoever appended something before. Only Calico's own jumps are left in front:
Felix puts them first again and again, and what they lead to does not touch the metadata address.

A table is python-iptables' `Table`, freshly read; what is changed counts from its `commit`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from ctypes import addressof, c_ubyte, string_at
from typing import Any

from kube2iam.redirect.rule import Family, Interfaces, RedirectRule
from kube2iam.redirect.xt_entry import RETURN, Dnat, Entry, Jump, Reset, clean, dnat_of, interface_of, metadata_of

CHAIN = "KUBE2IAM"
HOOKS = {"nat": ("PREROUTING",), "filter": ("FORWARD", "INPUT")}
_JUMP = Entry(Jump(CHAIN), metadata=True)
_NEIGHBOURS = "cali-"


def plan(family: Family, rule: RedirectRule) -> Mapping[str, Sequence[Entry]]:
    """What our chain holds in each table; nothing where there must be none. nat comes first: the guard refuses."""
    destination = rule.destination(family)
    return {
        "nat": () if destination is None else _leading(rule.interfaces, Dnat(destination, rule.port)),
        "filter": _leading(rule.interfaces, Reset()),
    }


def _leading(interfaces: Interfaces, target: Dnat | Reset) -> Sequence[Entry]:
    return [
        *(Entry(RETURN, interface=pattern) for pattern in interfaces.excluded),
        *(Entry(target, interface=pattern, tcp=True) for pattern in interfaces.included or (None,)),
    ]


def amiss(table: Any, family: Family, entries: Sequence[Entry]) -> str:
    """What in `table` is not as it should be, empty if nothing is."""
    jumps = [_jumps(table, family, hook) for hook in HOOKS[table.name]]
    if not entries:
        return f"{CHAIN} was left over" if table.is_chain(CHAIN) or any(jumps) else ""
    if not table.is_chain(CHAIN):
        return f"{CHAIN} was missing"
    if [raw for _, raw in _rules(table, family, CHAIN)] != [entry.pack(family) for entry in entries]:
        return f"{CHAIN} was different"
    for hook, found in zip(HOOKS[table.name], jumps, strict=True):
        if found != [(_first(table, family, hook), _JUMP.pack(family))]:
            return f"{hook} did not go to {CHAIN} first"
    return ""


def write(table: Any, family: Family, entries: Sequence[Entry]) -> None:
    """Make `table` hold our chain with `entries` and the jumps to it, or none of it, in one commit."""
    for hook in HOOKS[table.name]:
        for _, raw in _jumps(table, family, hook):
            table.delete_entry(
                hook, _buffer(raw), _buffer(bytes(len(raw)))
            )  # a mask of zeros: whatever its matches say
    if table.is_chain(CHAIN):
        table.flush_entries(CHAIN)
    if entries and not table.is_chain(CHAIN):
        table.create_chain(CHAIN)
    if not entries and table.is_chain(CHAIN):
        table.delete_chain(CHAIN)
    for entry in entries:
        table.append_entry(CHAIN, _buffer(entry.pack(family)))
    for hook in HOOKS[table.name] if entries else ():
        table.insert_entry(hook, _buffer(_JUMP.pack(family)), _first(table, family, hook))
    table.commit()


def _rules(table: Any, family: Family, chain: str) -> Iterator[tuple[str, bytes]]:
    """The rules of `chain`: what the target is called, and the rule as `Entry.pack` would write it."""
    entry = table.first_rule(chain)
    while entry:
        target = table.get_target(entry).decode()
        yield target, clean(string_at(addressof(entry), entry.next_offset), target, family)
        entry = table.next_rule(entry)


def _jumps(table: Any, family: Family, hook: str) -> list[tuple[int, bytes]]:
    """Where in `hook` rules jump to our chain, and those rules."""
    return [(at, raw) for at, (target, raw) in enumerate(_rules(table, family, hook)) if target == CHAIN]


def _first(table: Any, family: Family, hook: str) -> int:
    """The place in `hook` that is ours: the first, behind neighbours who insist on it."""
    targets = (target for target, _ in _rules(table, family, hook))
    return sum(1 for _ in itertools.takewhile(lambda target: target.startswith(_NEIGHBOURS), targets))


def read(table: Any, family: Family) -> Sequence[tuple[str, bytes]]:
    """The rules of our chain; none where it is missing."""
    return list(_rules(table, family, CHAIN)) if table.is_chain(CHAIN) else []


def rule_of(chains: Mapping[str, Sequence[tuple[str, bytes]]], family: Family) -> RedirectRule:
    """The rule that our chains say, by table, as far as `family` goes and they say one."""
    guards = chains.get("filter", ())
    included = [interface_of(raw, family) for target, raw in guards if target != RETURN.to]
    excluded = [interface_of(raw, family) for target, raw in guards if target == RETURN.to]
    led = chains.get("nat", ())
    dnat = dnat_of(led[-1][1], family) if led else None
    address, port = (dnat.address, dnat.port) if dnat else (None, 0)
    interfaces = Interfaces(tuple(filter(None, included)), tuple(filter(None, excluded)))
    return RedirectRule.for_family(family, interfaces, address=address, port=port)


def foreign(table: Any, family: Family) -> Iterator[str]:
    """Others' rules in PREROUTING for the metadata address, such as an older kube2iam appends; for people."""
    for number, (target, raw) in enumerate(_rules(table, family, "PREROUTING"), 1):
        if target != CHAIN and metadata_of(raw, family):
            yield f"rule {number}, from {interface_of(raw, family) or 'any interface'} to {target}"


def _buffer(raw: bytes) -> Any:
    return (c_ubyte * len(raw)).from_buffer_copy(raw)
