"""Why a pod gets nothing: every reason there is, and what each one means on the wire.

This table is the only place that knows which HTTP status a reason has. The reply, the log line, the metric label and
the Kubernetes Event all show the same `Denial`.
"""

from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """A reason: its short code (`X-Kube2iam-Denied`, metric label) and the HTTP status that clients read best."""

    NO_ROLE = "no-role", 404
    ROLE_MALFORMED = "role-malformed", 403
    ANNOTATION_INVALID = "annotation-invalid", 403
    NAMESPACE_DENIED = "namespace-denied", 403
    NAMESPACE_UNREADABLE = "namespace-unreadable", 403
    OTHER_ROLE = "other-role", 403
    NODE_ADDRESS = "node-address", 403
    UNKNOWN_ADDRESS = "unknown-address", 503
    AMBIGUOUS_ADDRESS = "ambiguous-address", 503
    UNKNOWN_NAMESPACE = "unknown-namespace", 503
    NOT_SYNCED = "not-synced", 503
    NOT_READY = "not-ready", 503
    OVER_LIMIT = "over-limit", 503
    STS_PENDING = "sts-pending", 503
    STS_REFUSED = "sts-refused", 403
    STS_UNAVAILABLE = "sts-unavailable", 500
    NODE_CREDENTIALS = "node-credentials", 500

    def __init__(self, code: str, status: int) -> None:
        self.code = code
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a moment later, so that it is worth holding and retrying."""
        return self.status == 503


@dataclass(frozen=True, slots=True)
class Denial:
    """A no, with a sentence for people that names what is wrong and how to mend it. Never holds a secret."""

    reason: Reason
    explanation: str


class RefusedError(Exception):
    """A request that gets nothing. Carries the `Denial` to whoever answers."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(f"{denial.reason.code}: {denial.explanation}")
        self.denial = denial


def refused(reason: Reason, explanation: str) -> RefusedError:
    """The exception for `reason`, ready to raise."""
    return RefusedError(Denial(reason, explanation))
