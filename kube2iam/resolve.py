"""The spine of a request: address -> pod -> grant -> credentials."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Protocol

from kube2iam.domain.errors import Denial, Reason, RefusedError
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.policy import Policy
from kube2iam.domain.roles import AssumeRoleRequest, Credentials, Decision, Grant

TieBreak = Callable[[str], Awaitable[Pod | None]]
"""Asks the API server which pod has an address that several claim; None if it can't say."""


class CredentialCache(Protocol):
    """What the spine needs of the credentials room."""

    @property
    def ready(self) -> asyncio.Event:
        """Set once STS can be called."""

    def peek(self, request: AssumeRoleRequest) -> Credentials | None:
        """Credentials at hand that are worth giving out, or None."""

    def serves(self, request: AssumeRoleRequest) -> bool:
        """Whether they are at hand; counts as no answer."""

    def start(self, request: AssumeRoleRequest) -> object:
        """Begin to fetch, unless they are at hand."""

    async def get(self, request: AssumeRoleRequest, deadline: float) -> Credentials:
        """Credentials, fetched if need be; raises RefusedError."""


class Resolver:
    """Answers who is calling, which role it may have and with which credentials. Deadlines are loop times."""

    def __init__(
        self,
        *,
        index: PodIndex,
        policy: Policy,
        cache: CredentialCache,
        decided: Callable[[Pod, Decision], None] = lambda _pod, _decision: None,
    ) -> None:
        """`decided` hears of each decision that differs from the pod's last one."""
        self._index = index
        self._policy = policy
        self._cache = cache
        self.tie_break: TieBreak | None = None
        """Set where the API server is to be asked about addresses with several claimants."""
        self._decided = decided
        self._decisions: dict[str, tuple[Pod, Namespace | None, Decision]] = {}

    @property
    def policy(self) -> Policy:
        """What decides; assign a new one to change it for every later request."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy
        self._decisions.clear()

    def decide(self, pod: Pod) -> Decision:
        """The decision about `pod`; computed once for each version of the pod and of its namespace."""
        namespace = self._index.namespace(pod.namespace)
        known = self._decisions.get(pod.uid)
        if known is not None and known[0] is pod and known[1] is namespace:
            return known[2]
        decision = self._policy.decide(pod, namespace)
        self._decisions[pod.uid] = (pod, namespace, decision)
        if known is None or _differs(known[2], decision):
            self._forget_gone_pods()
            self._decided(pod, decision)
        return decision

    def peek(self, address: str) -> Grant:
        """What the pod at `address` may have now; raises RefusedError."""
        owner = self._index.find(address)
        decision = owner if isinstance(owner, Denial) else self.decide(owner)
        if isinstance(decision, Denial):
            raise RefusedError(decision)
        return decision

    async def grant(self, address: str, deadline: float) -> Grant:
        """As `peek`, but what may be known a moment later is waited for; raises RefusedError."""
        changed = asyncio.Event()
        with ExitStack() as waiting:
            for key in self._keys(address):
                waiting.callback(self._index.subscribe(key, changed.set))
            while True:
                changed.clear()
                try:
                    return self.peek(address)
                except RefusedError as error:
                    if error.denial.reason is Reason.AMBIGUOUS_ADDRESS and self.tie_break is not None:
                        return await self._settle(address, self.tie_break, deadline)
                    if not error.denial.reason.passing or not await _set_by(changed, deadline):
                        raise

    def warm(self, grant: Grant) -> Credentials | None:
        """The credentials of `grant` if they are at hand."""
        return self._cache.peek(grant.request)

    def is_warm(self, grant: Grant) -> bool:
        """Whether the credentials of `grant` are at hand, for a pod that does not ask for them yet."""
        return self._cache.serves(grant.request)

    async def prepare(self, grant: Grant, deadline: float) -> None:
        """Have the credentials of `grant` fetched, for a pod that will ask for them at once. Raises nothing.

        Waits for them, but not for an agent that has only just begun and cannot call STS yet.
        """
        if not self._cache.ready.is_set():
            self._cache.start(grant.request)
            return
        with suppress(RefusedError):  # what STS says is for the credentials path to tell
            await self._cache.get(grant.request, deadline)

    async def credentials(self, grant: Grant, deadline: float) -> Credentials:
        """The credentials of `grant`; raises RefusedError, at the latest at `deadline`."""
        return await self._cache.get(grant.request, deadline)

    async def _settle(self, address: str, ask: TieBreak, deadline: float) -> Grant:
        try:
            async with asyncio.timeout_at(deadline):
                pod = await ask(address)
        except TimeoutError:
            pod = None
        decision: Decision = (
            Denial(Reason.AMBIGUOUS_ADDRESS, f"the API server does not say which pod has the address {address}")
            if pod is None
            else self.decide(pod)
        )
        if isinstance(decision, Denial):
            raise RefusedError(decision)
        return decision

    def _keys(self, address: str) -> Iterable[str]:
        owner = self._index.find(address)
        return (address,) if isinstance(owner, Denial) else (address, owner.namespace)

    def _forget_gone_pods(self) -> None:
        pods = self._index.pods()
        if len(self._decisions) > 2 * len(pods) + 64:
            alive = {pod.uid for pod in pods}
            self._decisions = {uid: known for uid, known in self._decisions.items() if uid in alive}


def _differs(before: Decision, after: Decision) -> bool:
    if isinstance(before, Grant) and isinstance(after, Grant):
        return (before.request, before.source, before.would_deny) != (after.request, after.source, after.would_deny)
    return before != after


async def _set_by(event: asyncio.Event, deadline: float) -> bool:
    """Whether `event` was set before `deadline`."""
    try:
        async with asyncio.timeout_at(deadline):
            await event.wait()
    except TimeoutError:
        return False
    return True
