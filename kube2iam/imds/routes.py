"""What answers what: a row for each kind of target. A metadata route is a function and a row here."""

from collections.abc import Mapping

from kube2iam.imds import identity, metadata, session
from kube2iam.imds.front import READ, Route
from kube2iam.imds.paths import Kind

READ_AND_PUT = READ | {b"PUT"}

ROUTES: Mapping[Kind, Route] = {
    Kind.ROOT: Route("rootHandler", metadata.root),
    Kind.VERSION: Route("rootHandler", metadata.version),
    Kind.TOKEN: Route("tokenHandler", session.token, READ_AND_PUT, needs_token=False),
    Kind.MISPLACED_TOKEN: Route("tokenHandler", session.misplaced, READ_AND_PUT, needs_token=False),
    Kind.IAM: Route("iamHandler", identity.iam),
    Kind.IAM_INFO: Route("iamInfoHandler", identity.info),
    Kind.ROLES: Route("securityCredentialsHandler", identity.roles),
    Kind.CREDENTIALS: Route("roleHandler", identity.credentials),
    Kind.METADATA: Route("reverseProxyHandler", metadata.value),
    Kind.LISTING: Route("reverseProxyHandler", metadata.listing),
    Kind.NOT_FOUND: Route("reverseProxyHandler", metadata.absent),
}
"""Every kind but ADMIN, which is answered by whoever shares the port."""
