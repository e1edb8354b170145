from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.index import EVERY, PodIndex
from kube2iam.domain.pod import Namespace, Pod

NOW = 1000.0


def pod(uid: str, *, ip: str | None = "10.1.0.5", created: float = 100, **fields: Any) -> Pod:
    made = Pod(namespace="shop", name=f"pod-{uid}", uid=uid, created=created, ips=(ip,) if ip else ())
    return replace(made, **fields)


def index_of(*pods: Pod) -> PodIndex:
    index = PodIndex(host_ips=["10.0.0.1"], clock=lambda: NOW)
    index.replace_pods(pods)
    index.replace_namespaces([Namespace("shop")])
    return index


def said(index: PodIndex, address: str = "10.1.0.5") -> str:
    """The owner's uid or the reason why there is none."""
    owner = index.find(address)
    return owner.reason.code if isinstance(owner, Denial) else owner.uid


GONE: dict[str, Any] = {"deletion": NOW - 1}
LEAVING: dict[str, Any] = {"deletion": NOW + 30}


@pytest.mark.parametrize(
    ("pods", "owner"),
    [
        ([pod("a")], "a"),
        ([], "unknown-address"),
        ([pod("a", ip=None)], "unknown-address"),
        ([pod("a", finished=True)], "unknown-address"),
        ([pod("a", host_network=True)], "node-address"),
        ([pod("a"), pod("b", host_network=True)], "node-address"),
        ([pod("a"), pod("b")], "ambiguous-address"),
        ([pod("a"), pod("b", created=200)], "ambiguous-address"),
        ([pod("a", finished=True), pod("b")], "b"),
        ([pod("a", **LEAVING)], "a"),
        ([pod("a", **LEAVING), pod("b", created=200)], "b"),
        ([pod("a", **LEAVING), pod("b")], "b"),
        ([pod("a", created=200, **LEAVING), pod("b")], "ambiguous-address"),
        ([pod("a", **LEAVING), pod("b", created=200, **LEAVING)], "b"),
        ([pod("a", **LEAVING), pod("b", **LEAVING)], "ambiguous-address"),
        ([pod("a", containers_ended=True)], "a"),
        ([pod("a", containers_ended=True, **LEAVING)], "unknown-address"),
        ([pod("a", **LEAVING), pod("b", ip=None, created=200)], "a"),
        ([pod("a", **GONE)], "a"),
        ([pod("a", **GONE), pod("b", ip=None, created=200)], "unknown-address"),
        ([pod("a", **GONE), pod("b", ip=None, created=50)], "a"),
        ([pod("a", **GONE), pod("b", ip="10.1.0.9", created=200)], "a"),
        ([pod("a", **GONE), pod("b", ip=None, created=200, host_network=True)], "a"),
        ([pod("a", **GONE), pod("b", ip=None, created=200, finished=True)], "a"),
    ],
)
def test_who_owns_an_address(pods: list[Pod], owner: str) -> None:
    assert said(index_of(*pods)) == owner


def test_the_nodes_address_is_nobodys_even_where_a_pod_claims_it() -> None:
    assert said(index_of(pod("a", ip="10.0.0.1")), "10.0.0.1") == "node-address"


def test_a_loopback_address_is_a_pods_where_the_cluster_says_so() -> None:
    assert said(index_of(pod("a", ip="127.0.0.2")), "127.0.0.2") == "a"


def test_nothing_is_known_before_both_lists_have_come() -> None:
    index = PodIndex()
    assert said(index) == "not-synced"
    index.replace_pods([pod("a")])
    assert said(index) == "not-synced"
    index.replace_namespaces([])
    assert said(index) == "a"
    assert index.synced


def test_pods_of_other_nodes_are_left_out() -> None:
    index = PodIndex(mine=lambda pod: pod.node == "n1")
    index.replace_pods([pod("a", node="n2"), pod("b", node="n1", ip="10.1.0.6")])
    index.replace_namespaces([])
    assert (said(index), said(index, "10.1.0.6")) == ("unknown-address", "b")
    index.upsert_pod(pod("b", node="n2", ip="10.1.0.6"))
    assert said(index, "10.1.0.6") == "unknown-address"


def test_a_late_delete_cannot_evict_the_next_owner() -> None:
    index = index_of(pod("a"))
    index.upsert_pod(pod("b", created=200))
    index.remove_pod("a")
    assert said(index) == "b"
    index.upsert_pod(pod("a"))
    assert said(index) == "b"


def test_a_new_pod_of_the_same_name_ends_one_whose_delete_was_lost() -> None:
    index = index_of(pod("a", name="web-0"))
    index.upsert_pod(pod("b", name="web-0", created=200))
    assert said(index) == "b"
    index.upsert_pod(pod("a", name="web-0"))
    assert said(index) == "b"


def test_those_who_wait_for_an_address_hear_of_it() -> None:
    heard: list[str] = []
    index = index_of(pod("old", deletion=NOW - 1))
    for key in ("10.1.0.5", "10.1.0.6", "shop", EVERY):
        index.subscribe(key, partial(heard.append, key))
    index.upsert_pod(pod("a", ip="10.1.0.6"))
    assert sorted(heard) == sorted(["10.1.0.6", EVERY, "10.1.0.5"])  # .5 may have changed hands too
    heard.clear()
    index.upsert_namespace(Namespace("shop", {"a": "b"}))
    assert sorted(heard) == sorted(["shop", EVERY])
    heard.clear()
    index.replace_pods([])
    assert sorted(heard) == sorted(["10.1.0.5", "10.1.0.6", "shop", EVERY])


def test_what_is_known_already_wakes_nobody_and_stays_the_same_object() -> None:
    """Everything that was decided by it holds; a controller may touch a namespace a hundred times a second."""
    heard: list[str] = []
    known, shop = pod("a"), Namespace("shop", {"a": "b"})
    index = index_of(known)
    index.upsert_namespace(shop)
    index.subscribe(EVERY, lambda: heard.append("x"))
    index.upsert_pod(replace(known))
    index.upsert_namespace(Namespace("shop", {"a": "b"}))
    assert heard == []
    index.replace_pods([replace(known), pod("b", ip="10.1.0.6")])
    index.replace_namespaces([Namespace("shop", {"a": "b"})])
    assert index.find("10.1.0.5") is known
    assert index.namespace("shop") is shop
    index.upsert_namespace(Namespace("shop", {"a": "c"}))
    assert heard == ["x"] * 3


def test_who_has_unsubscribed_hears_nothing() -> None:
    heard: list[str] = []
    index = index_of()
    stop = index.subscribe(EVERY, lambda: heard.append("x"))
    index.upsert_pod(pod("a"))
    stop()
    index.upsert_pod(pod("b"))
    assert heard == ["x"]
    assert not index._wakes


ADDRESSES = ["10.1.0.1", "10.1.0.2"]


class IndexAgainstOracle(RuleBasedStateMachine):
    """A cluster lives on; its events reach the index late, twice or never. A LIST sets everything right."""

    @initialize()
    def begin(self) -> None:
        self.index = PodIndex(clock=lambda: NOW)
        self.index.replace_namespaces([])
        self.index.replace_pods([])
        self.truth: dict[str, Pod] = {}
        self.shown: dict[str, Pod] = {}
        self.gone: set[str] = set()
        self.pending: list[tuple[str, Pod]] = []
        self.made = 0

    @rule(
        name=st.sampled_from("xyz"),
        ip=st.none() | st.sampled_from(ADDRESSES),
        host_network=st.booleans(),
    )
    def create(self, name: str, ip: str | None, *, host_network: bool) -> None:
        if any(pod.name == name for pod in self.truth.values()):
            return
        self.made += 1
        made = Pod("shop", name, f"u{self.made}", created=self.made, ips=(ip,) if ip else (), host_network=host_network)
        self.truth[made.uid] = made
        self.pending.append(("upsert", made))

    @rule(
        data=st.data(),
        ip=st.sampled_from(ADDRESSES),
        finished=st.booleans(),
        deletion=st.sampled_from([None, NOW - 1, NOW + 1]),
        ended=st.booleans(),
    )
    def change(self, data: st.DataObject, ip: str, deletion: float | None, *, finished: bool, ended: bool) -> None:
        if self.truth:
            uid = data.draw(st.sampled_from(sorted(self.truth)))
            changed = replace(self.truth[uid], ips=(ip,), finished=finished, deletion=deletion, containers_ended=ended)
            self.truth[uid] = changed
            self.pending.append(("upsert", changed))

    @rule(data=st.data(), lost=st.booleans())
    def delete(self, data: st.DataObject, *, lost: bool) -> None:
        if self.truth:
            gone = self.truth.pop(data.draw(st.sampled_from(sorted(self.truth))))
            if not lost:
                self.pending.append(("delete", gone))

    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, *, again: bool) -> None:
        """The next event of any one object: in order for each object, shuffled between them."""
        if not self.pending:
            return
        uid = data.draw(st.sampled_from(sorted({pod.uid for _, pod in self.pending})))
        event = next(event for event in self.pending if event[1].uid == uid)
        if not again:
            self.pending.remove(event)
        kind, changed = event
        if kind == "delete":
            self.index.remove_pod(uid)
            self.shown.pop(uid, None)
            self.gone.add(uid)
        else:
            self.index.upsert_pod(changed)
            self._show(changed)

    def _show(self, changed: Pod) -> None:
        namesake = next((pod for pod in self.shown.values() if pod.name == changed.name), None)
        if changed.uid in self.gone or (namesake is not None and namesake.created > changed.created):
            return
        if namesake is not None:
            del self.shown[namesake.uid]
        self.shown[changed.uid] = changed

    @rule()
    def list_again(self) -> None:
        self.index.replace_pods(self.truth.values())
        self.shown = dict(self.truth)
        self.gone.clear()
        self.pending.clear()

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "index"):
            for address in ADDRESSES:
                assert said(self.index, address) == oracle(list(self.shown.values()), address)
            assert {pod.uid for pod in self.index.pods()} == {
                pod.uid for pod in self.shown.values() if not pod.host_network and not pod.finished
            }


def oracle(pods: list[Pod], address: str) -> str:
    """The rules of ownership, written down as plainly and as slowly as they read."""
    running = [pod for pod in pods if not pod.finished]
    if any(pod.host_network and address in pod.ips for pod in running):
        return "node-address"
    claims = [pod for pod in running if address in pod.ips and not pod.host_network]
    if not claims:
        return "unknown-address"
    alive = [pod for pod in claims if pod.deletion is None]
    if len(alive) > 1:
        return "ambiguous-address"
    if alive:
        return alive[0].uid if all(pod.created <= alive[0].created for pod in claims) else "ambiguous-address"
    newest = max(claims, key=lambda pod: pod.created)
    if newest.containers_ended:
        return "unknown-address"
    unplaced = [pod for pod in running if not pod.ips and not pod.host_network and pod.created >= newest.created]
    return "unknown-address" if newest.deletion is not None and newest.deletion < NOW and unplaced else newest.uid


TestIndexAgainstOracle = IndexAgainstOracle.TestCase
TestIndexAgainstOracle.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_denials_say_who_claims_the_address() -> None:
    owner = index_of(pod("a"), pod("b")).find("10.1.0.5")
    assert isinstance(owner, Denial)
    assert owner.reason is Reason.AMBIGUOUS_ADDRESS
    assert "shop/pod-a, shop/pod-b" in owner.explanation
