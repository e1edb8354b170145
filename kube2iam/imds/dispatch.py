"""Each request to its route, each outcome to its reply, its metric and its log line.

The order of the checks: target, Host, method, the node's own address, session token, then the route.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Protocol

from kube2iam.domain.errors import Denial, Reason, RefusedError
from kube2iam.domain.pod import Pod
from kube2iam.imds import listen, replies
from kube2iam.imds.connection import Connection
from kube2iam.imds.front import FORWARDED_FOR, HOST, READ, TOKEN, Answer, Front, Head, Plan, Request, Route
from kube2iam.imds.limits import PodLimits
from kube2iam.imds.paths import BadTargetError, Kind, Target, parse
from kube2iam.imds.refusals import Denials, Refusals, fields_of
from kube2iam.imds.replies import Reply
from kube2iam.imds.routes import ROUTES

log = logging.getLogger(__name__)

IMDSV2 = "iam.amazonaws.com/imdsv2"
"""Annotation of a namespace: `optional` or `required`, whatever the flag says; anything else means `required`."""

_MALFORMED = "malformedHandler"
_METHODS = frozenset((b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"PATCH", b"OPTIONS"))
_REMEMBERED = frozenset(Kind) - {Kind.NOT_FOUND, Kind.ADMIN}
_ANYONES = frozenset((Kind.ROOT, Kind.VERSION, Kind.NOT_FOUND))
"""What says nothing of a pod or of the node, so that nobody has to be known for it."""
_NAMES = (b"169.254.169.254", b"[fd00:ec2::254]", b"instance-data", b"instance-data.ec2.internal")
_METADATA_HOSTS = frozenset(name + port for name in _NAMES for port in (b"", b":80"))
_OVER_LIMIT = Denial(Reason.OVER_LIMIT, "more is being asked for than one pod's share of what costs something")
_ADMIN = Route("adminHandler", lambda _front, _request, _target: replies.empty(404))
_HEALTH = replace(_ADMIN, handler="healthHandler")
_CRASHED = Reply(500, closing=True)


class Metrics(Denials, Protocol):
    """What the pods' port counts. Labels are bounded whatever pods send."""

    def observer(self, handler: str, method: str, code: int) -> Callable[[float], None]:
        """What takes the seconds of one request; asked for once for each set of labels, then kept."""

    def without_token(self, namespace: str) -> None:
        """A pod of the namespace asked without a session token (IMDSv1)."""


class Admin(Protocol):
    """The probes and the metrics, where they share the port."""

    def __call__(self, path: str, query: str) -> tuple[int, str, bytes]:
        """Status, content type and body for `healthz`, `metrics` and so on."""


class Dispatch:
    """Answers requests. `admin` answers the admin paths to who asks by the node's own address; without it: 404."""

    def __init__(
        self, front: Front, *, limits: PodLimits, metrics: Metrics, admin: Admin | None = None, hop_limit: int = 0
    ) -> None:
        self._front = front
        self._limits = limits
        self._metrics = metrics
        self._admin = admin
        self._hop_limit = hop_limit
        self._observers: dict[tuple[str, str, int], Callable[[float], None]] = {}
        self._refusals = Refusals(metrics, front.resolver.decide)

    def handle(self, request: Request, connection: Connection) -> Answer:
        """The reply, or a coroutine that `settle` must see the end of. Does not raise."""
        request.started = perf_counter()
        try:
            answer = self._answer(request, connection)
        except RefusedError as error:
            answer = self._refusals.reply(request, error.denial)
        except BadTargetError:
            answer = replies.closing(400)
        except Exception:
            log.exception("a request was not answered", extra=fields_of(request))
            answer = _CRASHED
        if not isinstance(answer, Reply):
            request.stranger = isinstance(request.owner, Denial)
            if self._limits.hold(request.address, stranger=request.stranger):
                return answer
            answer.close()
            answer = self._refusals.reply(request, _OVER_LIMIT)
        self._observe(request, answer)
        return answer

    def settle(self, request: Request, task: asyncio.Task[Reply]) -> Reply:
        """The reply that a finished coroutine of `handle` comes to. Does not raise."""
        self._limits.release(request.address, stranger=request.stranger)
        if task.cancelled():
            return _CRASHED  # nobody is there to read it
        error = task.exception()
        if error is None:
            reply = task.result()
        elif isinstance(error, RefusedError):
            reply = self._refusals.reply(request, error.denial)
        else:
            log.error("a request was not answered", exc_info=error, extra=fields_of(request))
            reply = _CRASHED
        self._observe(request, reply)
        return reply

    def malformed(self, address: str, status: int) -> None:
        """Something that is no sound request was answered with `status`."""
        self._observer(_MALFORMED, "other", status)(0.0)
        log.debug("a malformed request", extra={"req.remote": address, "res.status": status})

    def _answer(self, request: Request, connection: Connection) -> Answer:
        head, front = request.head, self._front
        plan = head.plan or self._plan(head)
        target, route = plan.target, plan.route
        request.plan = plan
        if target.kind is Kind.ADMIN:
            return self._admit(request, target, connection)
        if not plan.at_metadata:
            return replies.empty(403)
        if head.method not in route.methods:
            return replies.method_not_allowed("GET, HEAD" if route.needs_token else "PUT")
        request.owner = owner = front.pods.find(request.address)
        if isinstance(owner, Denial) and not owner.reason.passing:
            raise RefusedError(owner)
        if route.needs_token:
            unknown = isinstance(owner, Denial) and target.kind not in _ANYONES
            refusal = None if unknown and plan.token is None else self._check_token(request, plan.token)
            if refusal is not None:
                return refusal
            if unknown:
                return self._once_known(request, plan)
        answer = route.function(front, request, target)
        if self._hop_limit and target.kind is Kind.TOKEN:
            listen.limit_hops(connection.transport.get_extra_info("socket"), self._hop_limit)
        return answer

    def _plan(self, head: Head) -> Plan:
        """What the head means; raises BadTargetError. Remembered where clients can be expected to say it again."""
        target = parse(head.target, self._front.allowlist)
        host = head.headers.get(HOST)
        plan = Plan(
            target=target,
            route=ROUTES.get(target.kind) or (_HEALTH if target.path == "healthz" else _ADMIN),
            at_metadata=host is None or host in _METADATA_HOSTS or host.lower() in _METADATA_HOSTS,
            token=head.headers.get(TOKEN),
        )
        if target.kind in _REMEMBERED:
            head.plan = plan
        return plan

    async def _once_known(self, request: Request, plan: Plan) -> Reply:
        """Answer a pod that is not known yet: its token may be another pod's, its namespace may require one."""
        front = self._front
        try:
            request.owner = (await front.resolver.grant(request.address, front.deadline(request))).pod
        except RefusedError:
            request.owner = front.pods.find(request.address)
        if isinstance(request.owner, Denial):
            raise RefusedError(request.owner) from None
        refusal = self._check_token(request, plan.token)
        if refusal is not None:
            return refusal
        answer = plan.route.function(front, request, plan.target)
        return answer if isinstance(answer, Reply) else await answer

    def _check_token(self, request: Request, token: bytes | None) -> Reply | None:
        """The refusal of a request whose session token is bad, or is missing where one is required."""
        owner = request.owner if isinstance(request.owner, Pod) else None
        if token is not None:
            if FORWARDED_FOR in request.headers:
                return replies.empty(403)
            known = self._front.tokens.verify(token, request.address, owner.uid if owner is not None else None)
            return None if known else replies.empty(401)
        if owner is not None:
            self._metrics.without_token(owner.namespace)
        return replies.empty(401) if self._requires_token(owner) else None

    def _requires_token(self, owner: Pod | None) -> bool:
        namespace = None if owner is None else self._front.pods.namespace(owner.namespace)
        said = None if namespace is None else namespace.annotation(IMDSV2)
        return self._front.require_token if said is None else said != "optional"

    def _admit(self, request: Request, target: Target, connection: Connection) -> Answer:
        """Answer an admin path to who asks by an address of the node's own, and never through the redirect.

        What it costs counts as the asker's, unless that is the node: probes wait for nobody's share.
        """
        plan_at_metadata = request.plan is not None and request.plan.at_metadata and HOST in request.headers
        wire = connection.transport.get_extra_info("socket")
        if self._admin is None or plan_at_metadata or listen.redirected(wire):
            return replies.empty(404)
        if request.method not in READ:
            return replies.method_not_allowed("GET, HEAD")
        request.owner = owner = self._front.pods.find(request.address)
        by_node = isinstance(owner, Denial) and (owner.reason is Reason.NODE_ADDRESS or listen.from_here(wire))
        return _page(self._admin, target) if by_node else _costly_page(self._admin, target)

    def _observe(self, request: Request, reply: Reply) -> None:
        seconds = perf_counter() - request.started
        plan = request.plan
        observe = None if plan is None else plan.observers.get(reply.status)
        if observe is None:
            method = request.method.decode() if request.method in _METHODS else "other"
            observe = self._observer(_MALFORMED if plan is None else plan.route.handler, method, reply.status)
            if plan is not None:
                plan.observers[reply.status] = observe
        observe(seconds)
        if log.isEnabledFor(logging.DEBUG):
            fields = fields_of(request) | {"res.status": reply.status, "res.duration": seconds * 1000}
            log.debug("answered", extra=fields)

    def _observer(self, handler: str, method: str, status: int) -> Callable[[float], None]:
        labels = handler, method, status
        known = self._observers.get(labels)
        if known is None:
            known = self._observers[labels] = self._metrics.observer(handler, method, status)
        return known


def _page(admin: Admin, target: Target) -> Reply:
    status, content_type, body = admin(target.path, target.query)
    return Reply(status, body, content_type=content_type)


async def _costly_page(admin: Admin, target: Target) -> Reply:
    return _page(admin, target)
