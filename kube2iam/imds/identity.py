"""The routes that answer from the pod's own role: its name, its credentials, its profile.

"Hold, and spread the hold": clients cut a request at one second, so each waits at most `front.hold`; and the listing,
whose answer needs no STS, starts the flight for the credentials and waits for it too. A client that then asks for the
credentials has borne twice the hold of a cold STS without an error.
"""

from collections.abc import Callable

from kube2iam.domain.errors import Reason, RefusedError, refused
from kube2iam.domain.pod import Pod
from kube2iam.domain.roles import Grant
from kube2iam.imds import replies
from kube2iam.imds.front import Answer, Front, Request
from kube2iam.imds.paths import Target
from kube2iam.imds.replies import Reply

_IAM = Reply(200, b"info\nsecurity-credentials/")


def iam(front: Front, request: Request, _target: Target) -> Answer:
    """`meta-data/iam/`: what is below it, for a pod that has a role."""
    return _granted(front, request, lambda _grant: _IAM)


def info(front: Front, request: Request, _target: Target) -> Answer:
    """`meta-data/iam/info`: the instance profile that the pod would have on an instance of its own."""
    return _granted(front, request, lambda grant: replies.iam_info(grant.arn, front.clock()))


def roles(front: Front, request: Request, _target: Target) -> Answer:
    """`meta-data/iam/security-credentials/`: the role's name, at the latest when the hold is over."""
    grant = _known(front, request)
    if grant is not None and front.resolver.is_warm(grant):
        return replies.role_listing(grant.arn.name)
    return _roles_held(front, request)


def credentials(front: Front, request: Request, target: Target) -> Answer:
    """`meta-data/iam/security-credentials/<role>`: the session's keys, if `<role>` is a spelling of the pod's role."""
    grant = _known(front, request)
    if grant is not None:
        _same_role(grant, target)
        given = front.resolver.warm(grant)
        if given is not None:
            return front.rendered.get(given)
    return _credentials_held(front, request, target)


def _known(front: Front, request: Request) -> Grant | None:
    """The pod's grant, or None where it may be known a moment later; raises RefusedError where waiting cannot help."""
    owner = request.owner
    decision = front.resolver.decide(owner) if isinstance(owner, Pod) else owner
    if isinstance(decision, Grant):
        return decision
    if decision is None or decision.reason.passing:
        return None
    raise RefusedError(decision)


def _granted(front: Front, request: Request, render: Callable[[Grant], Reply]) -> Answer:
    """What `render` makes of the pod's grant, now or once it is known."""
    grant = _known(front, request)
    return _granted_held(front, request, render) if grant is None else render(grant)


async def _granted_held(front: Front, request: Request, render: Callable[[Grant], Reply]) -> Reply:
    return render(await front.resolver.grant(request.address, front.deadline(request)))


async def _roles_held(front: Front, request: Request) -> Reply:
    resolver, deadline = front.resolver, front.deadline(request)
    grant = await resolver.grant(request.address, deadline)
    await resolver.prepare(grant, deadline)
    return replies.role_listing((await resolver.grant(request.address, deadline)).arn.name)


async def _credentials_held(front: Front, request: Request, target: Target) -> Reply:
    resolver, deadline = front.resolver, front.deadline(request)
    grant = await resolver.grant(request.address, deadline)
    while True:
        _same_role(grant, target)
        given = await resolver.credentials(grant, deadline)
        asked = grant.request
        grant = await resolver.grant(request.address, deadline)
        if grant.request == asked:
            return front.rendered.get(given)


def _same_role(grant: Grant, target: Target) -> None:
    """Raise unless the path names the pod's own role; the name is never looked up, only compared."""
    arn = grant.arn
    if target.role != arn.name and target.role not in arn.spellings:
        raise refused(Reason.OTHER_ROLE, f"{grant.pod} asked for a role other than its own, {arn}")
