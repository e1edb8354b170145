"""The rule as nftables and as the legacy iptables have it: written, compared, read back."""

import copy
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.redirect import nft_table, xt_entry
from kube2iam.redirect.rule import Family, Interfaces, RedirectRule
from kube2iam.redirect.xt_entry import RETURN, Dnat, Entry, Jump, Reset

names = st.text("abceni0123456789.-", min_size=1, max_size=14)
patterns = st.builds(lambda name, rest: name + rest, names, st.sampled_from(["", "+"]))
tuples = st.lists(patterns, max_size=3, unique=True).map(tuple)
interfaces = st.builds(lambda included, excluded: Interfaces(included, (*excluded, "lo")), tuples, tuples)
families = st.sampled_from(Family)
ports = st.integers(1, 65535)


def one_family(family: Family, interfaces: Interfaces, port: int, *, led: bool) -> RedirectRule:
    address = {Family.IPV4: "10.0.0.1", Family.IPV6: "fd00::1"}[family] if led else None
    return RedirectRule.for_family(family, interfaces, address=address, port=port if led else 0)


rules = st.builds(lambda f, i, p, led: (f, one_family(f, i, p, led=led)), families, interfaces, ports, st.booleans())


@given(rules)
def test_a_table_is_read_back_as_the_rule_it_says(case: tuple[Family, RedirectRule]) -> None:
    family, rule = case
    assert nft_table.read(family, nft_table.state_of(_listed(family, rule))) == rule


@given(rules, st.data())
def test_a_table_that_someone_edited_is_no_rule_of_ours(case: tuple[Family, RedirectRule], data: st.DataObject) -> None:
    family, rule = case
    listing = _listed(family, rule)
    at = data.draw(st.integers(0, len(listing) - 1))
    match data.draw(st.sampled_from(["drop", "double", "blank"])):
        case "drop":
            gone = listing.pop(at)
        case "double":
            gone = copy.deepcopy(listing[at])
            listing.append({"rule": {"family": family.table, "chain": "guard", "expr": [{"accept": None}]}})
        case _:
            gone = listing[at]
            listing[at] = {"set": {"name": "strange"}}
    if gone.keys() & {"metainfo"}:
        listing.append({"map": {"name": "strange"}})
    assert nft_table.read(family, nft_table.state_of(listing)) != rule


def _listed(family: Family, rule: RedirectRule) -> list[nft_table.Object]:
    """As nft lists it: with handles, counted packets, chains before rules."""
    objects = json.loads(json.dumps(list(nft_table.objects_of(family, rule))))
    for number, item in enumerate(objects):
        for value in item.values():
            value["handle"] = number
            for step in value.get("expr", ()):
                if "counter" in step:
                    step["counter"] = {"packets": number, "bytes": 60 * number}
    return [{"metainfo": {"version": "1.0.6"}}, *sorted(objects, key=lambda item: "rule" in item)]


targets = st.one_of(
    st.just(RETURN), st.just(Jump("KUBE2IAM")), st.just(Reset()), st.builds(Dnat, st.just("10.0.0.1"), ports)
)
entries = st.builds(Entry, targets, interface=st.none() | patterns, tcp=st.booleans(), metadata=st.booleans())


@given(entries, st.binary(min_size=64, max_size=64))
def test_what_memory_held_before_does_not_count(entry: Entry, junk: bytes) -> None:
    """A kernel's copy has counters, an offset for a jump, and junk behind names; iptables leaves the + in a name."""
    raw = bytearray(entry.pack(Family.IPV4))
    jump = entry.target.to if isinstance(entry.target, Jump) else ""
    offset = struct.unpack_from("@H", raw, 88)[0]
    raw[84:88], raw[92:112] = junk[:4], junk[4:24]
    if jump:
        raw[offset + 2 : offset + 31] = bytes(1) + junk[24:52]
        raw[offset + 32 : offset + 36] = junk[52:56]
    else:
        end = raw.index(0, offset + 2) + 1
        raw[end : offset + 31] = junk[: offset + 31 - end]
    if entry.interface and entry.interface.endswith("+") and len(entry.interface) < 16:
        raw[16 + len(entry.interface) - 1] = ord("+")
    assert xt_entry.clean(bytes(raw), jump, Family.IPV4) == entry.pack(Family.IPV4)


@given(entries, families)
def test_an_entry_is_clean_as_packed_and_says_its_parts(entry: Entry, family: Family) -> None:
    if isinstance(entry.target, Dnat) and family is Family.IPV6:
        entry = Entry(Dnat("fd00::1", entry.target.port), entry.interface, entry.tcp, entry.metadata)
    raw = entry.pack(family)
    jump = entry.target.to if isinstance(entry.target, Jump) else ""
    assert xt_entry.clean(raw, jump, family) == raw
    assert xt_entry.interface_of(raw, family) == entry.interface
    assert xt_entry.metadata_of(raw, family) == entry.metadata
    assert xt_entry.dnat_of(raw, family) == (entry.target if isinstance(entry.target, Dnat) else None)


@pytest.mark.parametrize(("family", "size"), [(Family.IPV4, 112), (Family.IPV6, 168)])
def test_an_entry_begins_as_the_kernels_struct(family: Family, size: int) -> None:
    """sizeof(struct ipt_entry) and sizeof(struct ip6t_entry) on 64 bits, then a standard target of 40 bytes."""
    assert len(Entry(RETURN).pack(family)) == size + 40


def test_every_letter_of_an_interfaces_name_counts() -> None:
    raw = Entry(RETURN, interface="cali+").pack(Family.IPV6)
    assert raw[64:80] == b"cali".ljust(16, b"\0")
    assert raw[96:112] == (b"\xff" * 4).ljust(16, b"\0")
    raw = Entry(RETURN, interface="eth0").pack(Family.IPV6)
    assert raw[96:112] == (b"\xff" * 5).ljust(16, b"\0"), "and its end"
