"""Who is calling: this node's pods by address, and the namespaces by name.

Fed by the watch, asked by every request. Fails closed: where two pods claim an address, or a late event leaves a doubt,
nobody gets anything until the doubt is gone.
"""

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Namespace, Pod

T = TypeVar("T")

EVERY = ""
"""The key under which a subscriber hears of every change."""

_TOMBSTONES = 4096
"""How many deleted uids are remembered, so that a late event can't bring a pod back."""

_NOT_SYNCED = Denial(Reason.NOT_SYNCED, "the agent has not yet seen the cluster's pods and namespaces")


class PodIndex:
    """The pods of this node and the cluster's namespaces, as the API server showed them last."""

    def __init__(
        self,
        *,
        mine: Callable[[Pod], bool] = lambda _pod: True,
        host_ips: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._mine = mine
        self._host_ips = frozenset(host_ips)
        self._clock = clock
        self._pods: dict[str, Pod] = {}
        self._uids: dict[tuple[str, str], str] = {}
        self._claims: defaultdict[str, dict[str, Pod]] = defaultdict(dict)
        self._node_addresses: dict[str, set[str]] = {}
        self._without_address: dict[str, Pod] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._namespaces: dict[str, Namespace] = {}
        self._wakes: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self._seen_pods = False
        self._seen_namespaces = False

    # What the watch says

    def replace_pods(self, pods: Iterable[Pod]) -> None:
        """Take `pods` as all there are: the answer to a LIST."""
        before = dict(self._pods)
        for uid in before:
            self._drop(uid)
        self._deleted.clear()
        for pod in pods:
            self._take(_same(before.get(pod.uid), pod))
        self._seen_pods = True
        self._wake_all()

    def upsert_pod(self, pod: Pod) -> None:
        """Take one pod as added or changed. What was known already wakes nobody."""
        if self._pods.get(pod.uid) == pod:
            return
        touched = self._addresses_of(pod.uid)
        if pod.uid not in self._deleted:
            self._take(pod)
        self._wake({EVERY, *touched, *pod.ips, *self._doubtful_addresses()})

    def remove_pod(self, uid: str) -> None:
        """Forget the pod with this uid; another pod of the same name or address is untouched."""
        touched = self._addresses_of(uid)
        self._drop(uid)
        self._deleted[uid] = None
        if len(self._deleted) > _TOMBSTONES:
            self._deleted.popitem(last=False)
        self._wake({EVERY, *touched, *self._doubtful_addresses()})

    def forget_pod(self, uid: str) -> None:
        """Know nothing of this pod until it is seen again: what came of it last could not be read."""
        touched = self._addresses_of(uid)
        self._drop(uid)
        self._wake({EVERY, *touched, *self._doubtful_addresses()})

    def replace_namespaces(self, namespaces: Iterable[Namespace]) -> None:
        """Take `namespaces` as all there are: the answer to a LIST."""
        before = self._namespaces
        self._namespaces = {found.name: _same(before.get(found.name), found) for found in namespaces}
        self._seen_namespaces = True
        self._wake_all()

    def upsert_namespace(self, namespace: Namespace) -> None:
        """Take one namespace as added or changed. What was known already wakes nobody."""
        if self._namespaces.get(namespace.name) == namespace:
            return
        self._namespaces[namespace.name] = namespace
        self._wake({EVERY, namespace.name})

    def remove_namespace(self, name: str) -> None:
        """Forget the namespace."""
        self._namespaces.pop(name, None)
        self._wake({EVERY, name})

    # What is asked

    @property
    def synced(self) -> bool:
        """Whether pods and namespaces were each listed at least once."""
        return self._seen_pods and self._seen_namespaces

    def find(self, address: str) -> Pod | Denial:
        """The pod that owns the canonical `address` now, or why nobody can be said to own it."""
        if address in self._host_ips or address in self._node_addresses:
            return Denial(Reason.NODE_ADDRESS, f"{address} is the node's own address: no pod can be told from it")
        if not (self._seen_pods and self._seen_namespaces):
            return _NOT_SYNCED
        claims = self._claims.get(address)
        if not claims:
            return Denial(Reason.UNKNOWN_ADDRESS, f"no pod of this node is known to have the address {address}")
        if len(claims) == 1:
            (pod,) = claims.values()
            return pod if pod.deletion is None else self._terminating(address, pod)
        return self._settle(address, claims)

    def pods(self) -> Collection[Pod]:
        """This node's pods that may have an identity of their own, also those still without an address."""
        return [pod for pod in self._pods.values() if not pod.host_network and not pod.finished]

    def holds(self, pod: Pod) -> bool:
        """Whether `pod` is what is known of it at present: this very object."""
        return self._pods.get(pod.uid) is pod

    def addresses(self) -> Collection[str]:
        """Every address that a pod of this node claims."""
        return list(self._claims)

    def namespace(self, name: str) -> Namespace | None:
        """The namespace, or None if it has not been seen."""
        return self._namespaces.get(name)

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after each change that touches `key`: an address, a namespace's name, or EVERY.

        Returns what ends it.
        """
        self._wakes[key].append(wake)

        def unsubscribe() -> None:
            self._wakes[key].remove(wake)
            if not self._wakes[key]:
                del self._wakes[key]

        return unsubscribe

    # Two pods, one address

    def _settle(self, address: str, claims: dict[str, Pod]) -> Pod | Denial:
        newest = max(pod.created for pod in claims.values())
        alive = [pod for pod in claims.values() if pod.deletion is None]
        candidates = alive or [pod for pod in claims.values() if pod.created == newest]
        if len(candidates) == 1 and candidates[0].created == newest:
            (pod,) = candidates
            return pod if pod.deletion is None else self._terminating(address, pod)
        names = ", ".join(sorted(str(pod) for pod in claims.values()))
        return Denial(Reason.AMBIGUOUS_ADDRESS, f"{address} is claimed by several pods: {names}")

    def _terminating(self, address: str, pod: Pod) -> Pod | Denial:
        """A pod that is being deleted keeps its address while it may still need it."""
        if pod.containers_ended:
            return Denial(Reason.UNKNOWN_ADDRESS, f"{address} was {pod}'s, whose containers have all ended")
        if pod.deletion is not None and self._clock() > pod.deletion:
            for newer in self._without_address.values():
                if newer.created >= pod.created and newer.uid != pod.uid:
                    return Denial(
                        Reason.UNKNOWN_ADDRESS,
                        f"{address} was {pod}'s, whose grace period is over; it may be {newer}'s by now",
                    )
        return pod

    def _doubtful_addresses(self) -> list[str]:
        """Addresses whose owner depends on other pods: those of pods that are being deleted."""
        return [ip for ip, claims in self._claims.items() if any(pod.deletion is not None for pod in claims.values())]

    # Keeping the tables

    def _take(self, pod: Pod) -> None:
        key = (pod.namespace, pod.name)
        namesake = self._pods.get(self._uids.get(key, ""))
        if namesake is not None and namesake.uid != pod.uid:
            # A name belongs to one pod at a time: one of the two is gone and its DELETED was lost or comes late.
            if namesake.created > pod.created:
                return
            self._drop(namesake.uid)
        self._drop(pod.uid)
        if not self._mine(pod):
            return
        self._pods[pod.uid] = pod
        self._uids[key] = pod.uid
        if pod.finished:
            return
        if pod.host_network:
            for ip in pod.ips:
                self._node_addresses.setdefault(ip, set()).add(pod.uid)
        elif pod.ips:
            for ip in pod.ips:
                self._claims[ip][pod.uid] = pod
        else:
            self._without_address[pod.uid] = pod

    def _drop(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        if pod is None:
            return
        if self._uids.get((pod.namespace, pod.name)) == uid:
            del self._uids[pod.namespace, pod.name]
        self._without_address.pop(uid, None)
        for ip in pod.ips:
            if ip in self._claims:
                self._claims[ip].pop(uid, None)
                if not self._claims[ip]:
                    del self._claims[ip]
            if ip in self._node_addresses:
                self._node_addresses[ip].discard(uid)
                if not self._node_addresses[ip]:
                    del self._node_addresses[ip]

    def _addresses_of(self, uid: str) -> tuple[str, ...]:
        pod = self._pods.get(uid)
        return () if pod is None else pod.ips

    def _wake(self, keys: Iterable[str]) -> None:
        for key in keys:
            for wake in tuple(self._wakes.get(key, ())):
                wake()

    def _wake_all(self) -> None:
        self._wake(tuple(self._wakes))


def _same(before: T | None, now: T) -> T:
    """The known object, if nothing about it is new: what was decided by it holds."""
    return before if before == now and before is not None else now
