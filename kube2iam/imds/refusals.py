"""Refused requests: counted, said in the log while that is news, and answered by the one table of denials."""

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Pod
from kube2iam.domain.roles import Decision, Grant
from kube2iam.imds import replies
from kube2iam.imds.front import Request
from kube2iam.imds.replies import Reply

log = logging.getLogger(__name__)

_LONGEST_PATH = 256
_MOST_REMEMBERED = 4096
_SAID_AGAIN = 60.0
"""Seconds after which the same refusal of the same address is worth another line."""
_STRANGERS_SAID = 20
"""Lines in that time about addresses of no known pod, all together: there is no end of them."""


class Denials(Protocol):
    """Counts refused requests."""

    def denied(self, reason: Reason) -> None:
        """Someone was refused."""


class Refusals:
    """Answers who gets nothing. `decide` gives the decision about a pod."""

    def __init__(self, counter: Denials, decide: Callable[[Pod], Decision]) -> None:
        self._counter = counter
        self._decide = decide
        self._said: dict[tuple[str, Denial], float] = {}
        self._strangers_said = 0
        self._strangers_until = 0.0

    def reply(self, request: Request, denial: Denial) -> Reply:
        """What the pod is told."""
        self._counter.denied(denial.reason)
        now = perf_counter()
        if now >= self._said.get((request.address, denial), now) and self._worth_a_line(request, now):
            self._say(request, denial)
            self._said[request.address, denial] = now + _SAID_AGAIN
        return replies.denied(denial.reason)

    def _worth_a_line(self, request: Request, now: float) -> bool:
        """Whether it is a pod's request, or one of the first by a stranger for a while."""
        if isinstance(request.owner, Pod):
            return True
        if now >= self._strangers_until:
            self._strangers_said, self._strangers_until = 0, now + _SAID_AGAIN
        self._strangers_said += 1
        return self._strangers_said <= _STRANGERS_SAID

    def _say(self, request: Request, denial: Denial) -> None:
        if len(self._said) >= _MOST_REMEMBERED:
            del self._said[next(iter(self._said))]
        level = logging.DEBUG if denial.reason is Reason.NO_ROLE else logging.INFO  # most pods are to have none
        said = {"reason": denial.reason.code, "error": denial.explanation} | self._who(request)
        log.log(level, "refused", extra=fields_of(request) | said)

    def _who(self, request: Request) -> dict[str, str]:
        """The pod that asks, and its role if it has one."""
        pod = request.owner
        if not isinstance(pod, Pod):
            return {}
        decision = self._decide(pod)
        role = {"pod.iam.role": str(decision.arn)} if isinstance(decision, Grant) else {}
        return {"pod.namespace": pod.namespace, "pod.name": pod.name, "ns.name": pod.namespace} | role


def fields_of(request: Request) -> dict[str, Any]:
    """A request's log fields, by the names of Go kube2iam."""
    path = request.head.target[:_LONGEST_PATH].decode("latin-1")
    return {"req.method": request.method.decode("latin-1"), "req.path": path, "req.remote": request.address}
