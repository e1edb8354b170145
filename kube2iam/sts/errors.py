"""What may go wrong with STS: one table that says for every code what it means and what the pod is told.

Codes: https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html and API_AssumeRole.html there; beside them
the names of the SDK's own exceptions. The sentences are ours; the text that STS sends is never shown.
"""

import re
from dataclasses import dataclass
from enum import Enum

from kube2iam.domain.errors import Denial, Reason


class Kind(Enum):
    """A family of faults: the reason a pod is given, and how the cache treats it (shown in docs/credentials.md)."""

    REFUSED = "refused", Reason.STS_REFUSED
    """STS says no to this one request: remembered for `--iam-role-error-ttl`, growing to 60 s."""
    UNAVAILABLE = "unavailable", Reason.STS_UNAVAILABLE
    """STS gave no usable answer: remembered for 10 s at most; ended by the first answer after an outage."""
    THROTTLED = "throttled", Reason.STS_UNAVAILABLE
    """As UNAVAILABLE; the whole node calls more slowly for a while."""
    NODE = "node", Reason.NODE_CREDENTIALS
    """The agent's own credentials or clock are bad: as UNAVAILABLE, and never called the pod's fault."""

    def __init__(self, label: str, reason: Reason) -> None:
        self.label = label
        self.reason = reason

    @property
    def permanent(self) -> bool:
        """Whether the same request fails again until somebody changes something in IAM or in an annotation."""
        return self is Kind.REFUSED


@dataclass(frozen=True, slots=True)
class Fault:
    """A failed AssumeRole, as a value. `code` is AWS's error code or the SDK's exception; never holds a secret."""

    kind: Kind
    code: str
    explanation: str
    longest: int | None = None
    """Only where STS refuses the session's length: the longest one that it names, in seconds, or 0 if it names none."""

    @property
    def denial(self) -> Denial:
        """What the pod, the log and the health detail are told."""
        return Denial(self.kind.reason, f"{self.code}: {self.explanation}")

    @property
    def passing(self) -> bool:
        """Whether it may be gone in a second, so that a quick second attempt is worth its price."""
        return self.kind in {Kind.UNAVAILABLE, Kind.THROTTLED} and self.code not in TIMEOUTS


class StsError(Exception):
    """A source could not obtain credentials; carries the `Fault`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.code}: {fault.explanation}")
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    kind: Kind
    codes: tuple[str, ...]
    """Without the `Exception` with which some of them end."""
    says: str


TIMEOUT = "Timeout"
TIMEOUTS = frozenset({TIMEOUT, "ReadTimeoutError", "ConnectTimeoutError"})
CHAINED = 3600
"""Seconds that a session may live whose caller is itself a role session:
https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles.html#iam-term-role-chaining"""

TABLE = (
    Row(
        Kind.REFUSED,
        ("AccessDenied", "UnauthorizedOperation"),
        "STS does not allow this role: it does not exist, its trust policy does not name the agent's role or wants "
        "another external id, or the agent's role lacks sts:AssumeRole on it (with tags also sts:TagSession, with a "
        "source identity sts:SetSourceIdentity)",
    ),
    Row(
        Kind.REFUSED,
        ("ValidationError", "Validation", "InvalidParameterValue", "ParamValidationError", "MissingParameter"),
        "STS finds a value of the request invalid: the role's ARN, session name, external id, tags or duration",
    ),
    Row(
        Kind.REFUSED,
        ("MalformedPolicyDocument", "InvalidParameterCombination"),
        "STS cannot read a session policy of the request: check iam.amazonaws.com/session-policy-arns",
    ),
    Row(
        Kind.REFUSED,
        ("PackedPolicyTooLarge",),
        "the session tags and policies together are larger than STS takes: use fewer or shorter ones",
    ),
    Row(
        Kind.REFUSED,
        ("RegionDisabled",),
        "STS is not activated in this region for the account: activate it in IAM's account settings or choose another "
        "--region",
    ),
    Row(
        Kind.NODE,
        ("ExpiredToken", "RequestExpired"),
        "the agent's own credentials have expired (or the node's clock is wrong): see where the agent gets them from",
    ),
    Row(
        Kind.NODE,
        ("InvalidClientTokenId", "UnrecognizedClient", "InvalidAccessKeyId", "OptInRequired"),
        "AWS does not know the agent's own access key, or it belongs to another partition",
    ),
    Row(
        Kind.NODE,
        ("SignatureDoesNotMatch", "RequestTimeTooSkewed", "IncompleteSignature", "InvalidSignature", "AuthFailure"),
        "AWS does not accept the agent's signature: the node's clock is wrong or its secret key does not fit",
    ),
    Row(
        Kind.NODE,
        ("NoCredentialsError", "PartialCredentialsError", "MissingAuthenticationToken"),
        "the SDK's chain finds no credentials of the agent's own: the node needs an instance profile and a metadata "
        "service that answers, or the agent another source of that chain",
    ),
    Row(
        Kind.NODE,
        (
            "CredentialRetrievalError",
            "MetadataRetrievalError",
            "TokenRetrievalError",
            "UnauthorizedSSOTokenError",
            "ProfileNotFound",
            "ConfigNotFound",
            "ConfigParseError",
            "InvalidConfigError",
            "InvalidIMDSEndpointError",
            "InvalidIMDSEndpointModeError",
            "InvalidIdentityToken",
            "IDPCommunicationError",
            "IDPRejectedClaim",
        ),
        "the agent's own credentials cannot be loaded",
    ),
    Row(
        Kind.THROTTLED,
        (
            "Throttling",
            "Throttled",
            "RequestThrottled",
            "RequestLimitExceeded",
            "TooManyRequests",
            "BandwidthLimitExceeded",
            "LimitExceeded",
            "SlowDown",
            "PriorRequestNotComplete",
            "TransactionInProgress",
            "EC2Throttled",
        ),
        "STS throttles this account: the node calls it more slowly for a while",
    ),
    Row(
        Kind.UNAVAILABLE,
        ("ServiceUnavailable", "InternalFailure", "InternalError", "InternalServerError"),
        "STS is not available",
    ),
    Row(
        Kind.UNAVAILABLE,
        (TIMEOUT, "ReadTimeoutError", "ConnectTimeoutError", "RequestTimeout"),
        "STS did not answer in time",
    ),
    Row(Kind.UNAVAILABLE, ("NameResolutionError", "gaierror"), "the name of the STS endpoint cannot be resolved (DNS)"),
    Row(
        Kind.UNAVAILABLE,
        ("EndpointConnectionError", "ProxyConnectionError", "ConnectionClosedError", "HTTPClientError"),
        "no connection to the STS endpoint",
    ),
    Row(
        Kind.UNAVAILABLE,
        ("SSLError",),
        "the STS endpoint's TLS certificate is not trusted: set AWS_CA_BUNDLE behind a proxy that inspects TLS, or "
        "check the file that it names",
    ),
    Row(
        Kind.UNAVAILABLE,
        (
            "NoRegionError",
            "InvalidRegionError",
            "EndpointProviderError",
            "EndpointResolutionError",
            "UnknownEndpointError",
        ),
        "there is no STS endpoint for these settings: check --region and the AWS_… variables",
    ),
    Row(
        Kind.UNAVAILABLE,
        ("MalformedResponse", "ResponseParserError", "IncompleteReadError"),
        "STS answered with something that is not a role session",
    ),
)
_ROWS = {code: row for row in TABLE for code in row.codes}
_LENGTH = re.compile(r"DurationSeconds exceeds|'durationSeconds' failed", re.IGNORECASE)
"""In a message that is about the length, and in none that only names a role: no ARN holds a space or a quote."""


def fault(code: str, *, status: int = 0, message: str = "", detail: str = "") -> Fault:
    """The fault that `code` names; an unknown code is judged by its HTTP `status` (4xx is permanent).

    Without a code it was not STS that answered but something before it, such as a proxy: that may pass. `message` is
    STS's own text, read for session lengths only; `detail` (an endpoint, never a secret) is shown.
    """
    code = re.sub(r"[^A-Za-z0-9_.]", "", code)[:64]
    row = _ROWS.get(code.removesuffix("Exception")) or _unknown(code, status)
    says = f"{row.says} ({detail})" if detail else row.says
    longest = _longest(message) if row is _ROWS["ValidationError"] and _LENGTH.search(message) else None
    return Fault(row.kind, code or str(status or "UnknownError"), says, longest)


def _unknown(code: str, status: int) -> Row:
    if status == 429:
        return _ROWS["Throttling"]
    if not 400 <= status < 500:
        return Row(
            Kind.UNAVAILABLE, (), f"STS failed with HTTP status {status}" if status else "the call to STS failed"
        )
    if status == 408 or not code or code.isdigit():  # the SDK may give the status for a code
        says = f"something before STS, such as a proxy, answers with HTTP status {status}"
        return Row(Kind.UNAVAILABLE, (), says)
    return Row(Kind.REFUSED, (), f"STS refuses the request with HTTP status {status}")


def _longest(message: str) -> int:
    if "role chaining" in message.lower():
        return CHAINED
    limit = re.search(r"less than or equal to (\d+)", message)
    return int(limit[1]) if limit else 0
