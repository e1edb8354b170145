"""The routes that show what the real service shows: its versions, its directories, and the values of the allowlist."""

from contextlib import suppress

from kube2iam.domain.errors import Denial, RefusedError
from kube2iam.domain.pod import Pod
from kube2iam.imds.allowlist import Allowed, Allowlist
from kube2iam.imds.front import Answer, Front, Request
from kube2iam.imds.paths import VERSIONS, Target
from kube2iam.imds.replies import Reply, empty

_ROOT = Reply(200, "\n".join(VERSIONS).encode())
_TREE = Reply(200, b"dynamic\nmeta-data")
_TREE_AND_USER_DATA = Reply(200, b"dynamic\nmeta-data\nuser-data")
_MOST_LINES = 1000
"""Of a listing: patterns look at each. No directory of the real service has as many entries."""


def root(_front: Front, _request: Request, _target: Target) -> Answer:
    """`/`: the versions. Some clients find out by it whether tokens are required."""
    return _ROOT


def version(front: Front, _request: Request, _target: Target) -> Answer:
    """`/latest/`: what the tree holds for pods."""
    return _TREE if front.allowlist.check("user-data") is None else _TREE_AND_USER_DATA


def absent(_front: Front, _request: Request, _target: Target) -> Answer:
    """A path on no row of the allowlist."""
    return empty(404)


def value(front: Front, request: Request, target: Target) -> Answer:
    """A value of the allowlist, at once where it is at hand."""
    known = front.upstream.peek(target.path)
    if known is not None and isinstance(request.owner, Pod):
        return known
    return _value(front, request, target)


async def _value(front: Front, request: Request, target: Target) -> Reply:
    await _known_pod(front, request)
    reply = await front.upstream.get(target.path, front.deadline(request))
    path = target.path.removesuffix("/")
    if reply.status != 200 or front.allowlist.check(path) is not Allowed.EITHER:
        return reply
    lines = reply.body.split(b"\n")
    if len(lines) > _MOST_LINES and path == target.path:
        return reply  # it is no listing, then
    shown = [line for line in lines[:_MOST_LINES] if not front.allowlist.hidden(path, line.decode("latin-1"))]
    body = b"\n".join(shown)
    return reply if body == reply.body else Reply(200, body)


async def listing(front: Front, request: Request, target: Target) -> Reply:
    """A directory of the allowlist, as far as it may be seen."""
    await _known_pod(front, request)
    reply = await front.upstream.get(target.path, front.deadline(request))
    if reply.status != 200:
        return reply
    path = target.path.removesuffix("/")
    shown = _shown(front.allowlist, path, reply.body)
    if path == "meta-data" and _has_role(front, request):
        shown = sorted([*shown, "iam/"])
    return Reply(200, "\n".join(shown).encode())


def _shown(allowlist: Allowlist, path: str, body: bytes) -> list[str]:
    entries = body.decode("latin-1").split("\n", _MOST_LINES)[:_MOST_LINES]
    return [entry for entry in entries if entry not in {"", "iam", "iam/"} and allowlist.shown(path, entry)]


def _has_role(front: Front, request: Request) -> bool:
    try:
        front.resolver.peek(request.address)
    except RefusedError:
        return False
    return True


async def _known_pod(front: Front, request: Request) -> None:
    """Wait until the address is a pod's; raises RefusedError. A pod without a role may read metadata too."""
    owner = front.pods.find(request.address)
    if isinstance(owner, Denial) and owner.reason.passing:
        with suppress(RefusedError):
            await front.resolver.grant(request.address, front.deadline(request))
        owner = front.pods.find(request.address)
    if isinstance(owner, Denial):
        raise RefusedError(owner)
