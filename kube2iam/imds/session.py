"""The route that hands out session tokens: always at once, without Kubernetes, STS or the real service.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
"""

from kube2iam.domain.pod import Pod
from kube2iam.imds.front import FORWARDED_FOR, TTL, Answer, Front, Request
from kube2iam.imds.paths import Target
from kube2iam.imds.replies import Reply, empty
from kube2iam.imds.tokens import parse_ttl


def token(front: Front, request: Request, _target: Target) -> Answer:
    """`PUT /latest/api/token`. Errors have no body: some clients would take it for the token."""
    if request.method != b"PUT":
        return empty(404)
    if FORWARDED_FOR in request.headers:
        return empty(403)
    ttl = parse_ttl(request.headers.get(TTL, b""))
    if ttl is None:
        return empty(400)
    owner = request.owner
    uid = owner.uid if isinstance(owner, Pod) and owner.deletion is None else None
    minted = front.tokens.mint(request.address, uid, ttl)
    return Reply(200, minted, headers={"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": str(ttl)})


def misplaced(_front: Front, request: Request, _target: Target) -> Answer:
    """The token's path under another version or with a slash too many: 403 to a PUT, as the real service."""
    return empty(403 if request.method == b"PUT" else 404)
