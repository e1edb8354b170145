"""Our nftables table as the JSON that nft reads and prints. Pure: builds it, compares it, reads it back.

    chain prerouting    nat, before every other tool's: metadata traffic -> chain to_agent
    chain to_agent      the host's own and excluded interfaces return; pods' interfaces: DNAT
    chain forward,      filter: metadata traffic that was not redirected -> chain guard
    chain input         (input: for nodes that have the metadata address themselves)
    chain guard         the same interfaces: TCP reset

The guard refuses a family that has no destination, and it cuts connections that pods opened before the redirect
stood: connection tracking would let them pass by the nat chain for as long as they live. It needs no conntrack tool.
It stands in forward and input because reject in prerouting needs Linux 5.9.

JSON: https://manpages.debian.org/libnftables-json.5
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from kube2iam.redirect.rule import METADATA_PORT, Family, Interfaces, RedirectRule

TABLE = "kube2iam"
_NAT_PRIORITY = -110
"""Ten before dstnat, where kube-proxy, iptables and an older kube2iam sit: the first DNAT of a connection wins."""
_GUARD_PRIORITY = -10
"""Ten before filter. No later chain's accept undoes a reset; being first, it also shows first in a trace."""

Object = dict[str, Any]
State = dict[str, Any]


def replacing(family: Family, rule: RedirectRule) -> list[Object]:
    """The commands that put our table in place of what bears its name; the first makes the second always possible."""
    table = table_of(family)
    return [{"add": table}, {"delete": table}, *({"add": item} for item in objects_of(family, rule))]


def objects_of(family: Family, rule: RedirectRule) -> Iterable[Object]:
    """Our table in `family`, as nft reads and prints it."""
    yield table_of(family)
    destination = rule.destination(family)
    if destination is not None:
        yield from _leading(family, "to_agent", rule.interfaces, {"dnat": {"addr": destination, "port": rule.port}})
        yield from _base(family, "prerouting", "nat", _NAT_PRIORITY, jump="to_agent")
    yield from _leading(family, "guard", rule.interfaces, {"reject": {"type": "tcp reset"}})
    yield from _base(family, "forward", "filter", _GUARD_PRIORITY, jump="guard")
    yield from _base(family, "input", "filter", _GUARD_PRIORITY, jump="guard")


def _leading(family: Family, chain: str, interfaces: Interfaces, verdict: Object) -> Iterable[Object]:
    yield _chain(family, chain)
    for pattern in interfaces.excluded:
        yield _rule(family, chain, _came_in(pattern), {"return": None})
    for match in [[_came_in(pattern)] for pattern in interfaces.included] or [[]]:
        yield _rule(family, chain, *match, _equal("tcp", "dport", METADATA_PORT), {"counter": None}, verdict)


def _base(family: Family, hook: str, kind: str, priority: int, *, jump: str) -> Iterable[Object]:
    yield _chain(family, hook, type=kind, hook=hook, prio=priority, policy="accept")
    to = [_equal(family.table, "daddr", family.metadata), _equal("tcp", "dport", METADATA_PORT)]
    yield _rule(family, hook, *to, {"jump": {"target": jump}})


def table_of(family: Family) -> Object:
    """Our table itself, to add or delete."""
    return {"table": {"family": family.table, "name": TABLE}}


def _chain(family: Family, name: str, **hook: object) -> Object:
    return {"chain": {"family": family.table, "table": TABLE, "name": name, **hook}}


def _rule(family: Family, chain: str, *expressions: Object) -> Object:
    return {"rule": {"family": family.table, "table": TABLE, "chain": chain, "expr": list(expressions)}}


def _came_in(pattern: str) -> Object:
    name = f"{pattern[:-1]}*" if pattern.endswith("+") else pattern
    return {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": name}}


def _equal(protocol: str, field: str, value: object) -> Object:
    return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": value}}


def state_of(objects: Iterable[Object]) -> State:
    """What of a listing counts: not handles, not counters, and not the order of chains."""
    state: State = {"chains": {}, "rules": {}, "other": []}
    for item in objects:
        ((kind, value),) = item.items()
        value = {key: field for key, field in value.items() if key != "handle"}
        if kind == "chain":
            state["chains"][value["name"]] = value
        elif kind == "rule":
            value["expr"] = [{"counter": None} if "counter" in step else step for step in value["expr"]]
            state["rules"].setdefault(value["chain"], []).append(value)
        elif kind != "metainfo":
            state["other"].append({kind: value})
    return state


def read(family: Family, state: State) -> RedirectRule | None:
    """The rule that a table says, as far as `family` goes; None if it is not one that `objects_of` writes."""
    with suppress(AttributeError, KeyError, IndexError, TypeError):
        guards = [rule["expr"] for rule in state["rules"]["guard"]]
        interfaces = Interfaces(
            tuple(name for steps in guards if "reject" in steps[-1] and (name := _interface(steps[0]))),
            tuple(name for steps in guards if "return" in steps[-1] and (name := _interface(steps[0]))),
        )
        leads = state["rules"].get("to_agent")
        dnat: Object = leads[-1]["expr"][-1]["dnat"] if leads else {"addr": None, "port": 0}
        rule = RedirectRule.for_family(family, interfaces, address=dnat["addr"], port=dnat["port"])
        if state_of(objects_of(family, rule)) == state:
            return rule
    return None


def _interface(step: Object) -> str | None:
    match = step.get("match", {})
    if match.get("left") != {"meta": {"key": "iifname"}}:
        return None
    name = str(match["right"])
    return f"{name[:-1]}+" if name.endswith("*") else name
