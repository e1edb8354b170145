"""What a pod may have: the request to STS, the grant that allows it, the credentials that come back."""

from dataclasses import dataclass, field

from kube2iam.domain.arn import RoleArn
from kube2iam.domain.errors import Denial
from kube2iam.domain.pod import Pod


@dataclass(frozen=True, slots=True)
class AssumeRoleRequest:
    """A whole question to STS, and therefore the key of the credential cache: whatever changes the answer is here.

    Limits: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
    """

    arn: RoleArn
    session_name: str
    """2 to 64 characters of `[A-Za-z0-9_+=,.@-]`."""
    duration: int
    """Seconds, 900 to 43,200; what is asked for. STS may allow less."""
    external_id: str | None = None
    source_identity: str | None = None
    policy_arns: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    """(key, value), sorted by key."""
    transitive_tag_keys: tuple[str, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False, default=0)
    """Computed once: it is looked up with each warm answer."""

    def __post_init__(self) -> None:
        fields = self.arn, self.session_name, self.duration, self.external_id, self.source_identity
        object.__setattr__(self, "_hash", hash((*fields, self.policy_arns, self.tags, self.transitive_tag_keys)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Grant:
    """A yes: this pod may have what `request` asks for, because of `source`."""

    pod: Pod
    request: AssumeRoleRequest
    source: str
    """Where the role came from: `pod annotation`, `namespace default`, `default role`."""
    would_deny: Denial | None = None
    """What namespace restrictions would say if they were enforced (`--namespace-restrictions=report-only`)."""

    @property
    def arn(self) -> RoleArn:
        """The role."""
        return self.request.arn


Decision = Grant | Denial


@dataclass(frozen=True, slots=True)
class Credentials:
    """A role session's keys as STS returned them. Times are seconds since the epoch, whole seconds, UTC."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(repr=False)
    expiration: int
    issued: int
    """When STS was asked: `LastUpdated` on the wire."""

    def remaining(self, now: float) -> float:
        """Seconds of life left at `now`."""
        return self.expiration - now
