"""What the routes work with: one request, and the parts of the agent that answer it.

A route is a function `(front, request, target) -> Reply | Coroutine`. It returns a `Reply` whenever it can
answer at once; what must wait is a coroutine, and only that is counted against a pod's limits. A route may raise
RefusedError, at once or from its coroutine: the server turns the denial into its reply.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kube2iam.domain.errors import Denial
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.roles import Credentials, Decision, Grant
from kube2iam.imds.allowlist import Allowlist
from kube2iam.imds.paths import Target
from kube2iam.imds.replies import CredentialReplies, Reply

HOST = b"host"
TOKEN = b"x-aws-ec2-metadata-token"
TTL = b"x-aws-ec2-metadata-token-ttl-seconds"
FORWARDED_FOR = b"x-forwarded-for"
READ = frozenset((b"GET", b"HEAD"))


class Head:
    """What one request says, its HTTP found sound. Clients say the same again and again, so it is read once and shared.

    Header names are lower-case; only those that a rule reads are kept.
    """

    __slots__ = ("bodiless", "headers", "keep", "method", "plan", "target")

    def __init__(self, method: bytes, target: bytes, headers: Mapping[bytes, bytes], *, keep: bool) -> None:
        self.method = method
        self.target = target
        """As it came, unread."""
        self.headers = headers
        self.keep = keep
        """Whether the connection may be used again after the reply."""
        self.bodiless = method == b"HEAD"
        """Whether the reply goes without its body."""
        self.plan: Plan | None = None
        """What it means; None until it is known, and for what is not worth remembering."""


class Request:
    """One request: what is said, and who says it."""

    __slots__ = ("address", "deadline", "head", "owner", "plan", "started", "stranger")

    def __init__(self, head: Head, address: str) -> None:
        self.head = head
        self.address = address
        """Who asks: the peer's canonical address, fixed at accept."""
        self.owner: Pod | Denial | None = None
        """The pod that has the address, as the index knew it when the request was whole."""
        self.deadline: float | None = None
        """Loop time until which it may wait, set when it first has to."""
        self.plan: Plan | None = None
        """What its head means, once that is known."""
        self.started = 0.0
        self.stranger = False
        """Whether no pod was known to have the address when the request had to wait."""

    @property
    def method(self) -> bytes:
        """`GET`, `HEAD`, `PUT` or what else there is."""
        return self.head.method

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The fields that rules read."""
        return self.head.headers


@dataclass(slots=True)
class Plan:
    """What a head means, whoever sends it."""

    target: Target
    route: "Route"
    at_metadata: bool
    """Whether Host names the metadata service, or is rightly absent."""
    token: bytes | None
    observers: dict[int, Callable[[float], None]] = field(default_factory=dict)
    """By status: what the metrics are told through."""


class Resolver(Protocol):
    """Who is calling, which role it may have, and the credentials. Deadlines are loop times."""

    def peek(self, address: str) -> Grant:
        """The grant as known now; raises RefusedError."""

    def decide(self, pod: Pod) -> Decision:
        """What the pod may have, or why it gets nothing; as `peek`, for a pod that has been found."""

    async def grant(self, address: str, deadline: float) -> Grant:
        """The grant, waited for while its lack may pass; raises RefusedError."""

    def is_warm(self, grant: Grant) -> bool:
        """Whether the credentials of `grant` are at hand."""

    def warm(self, grant: Grant) -> Credentials | None:
        """Credentials that are at hand."""

    async def prepare(self, grant: Grant, deadline: float) -> None:
        """Have the credentials fetched and wait for them as far as that makes sense; raises nothing."""

    async def credentials(self, grant: Grant, deadline: float) -> Credentials:
        """The credentials, waited for; raises RefusedError."""


class Pods(Protocol):
    """The index of this node's pods and the namespaces."""

    def find(self, address: str) -> Pod | Denial:
        """The pod at the address."""

    def namespace(self, name: str) -> Namespace | None:
        """The namespace, if known."""


class Tokens(Protocol):
    """Session tokens (IMDSv2)."""

    def mint(self, address: str, uid: str | None, ttl: int) -> bytes:
        """A token for the address, and for the pod where it is known; `ttl` in seconds."""

    def verify(self, token: bytes, address: str, uid: str | None) -> bool:
        """Whether the token is this address's and still lives."""


class Upstream(Protocol):
    """The real metadata service."""

    def peek(self, path: str) -> Reply | None:
        """The answer for a value that never changes and is at hand."""

    async def get(self, path: str, deadline: float | None) -> Reply:
        """What a pod may see of the answer for an allowed path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What is behind the pods' port."""

    resolver: Resolver
    pods: Pods
    tokens: Tokens
    upstream: Upstream
    allowlist: Allowlist = field(default_factory=Allowlist)
    """Of the paths that pass through: the one that targets are parsed with."""
    rendered: CredentialReplies = field(default_factory=CredentialReplies)
    clock: Callable[[], float] = time.time
    hold: float = 0.8
    """Seconds that one request may wait, for its address and for STS together."""
    require_token: bool = False
    """Whether a request without a session token is answered 401, unless its namespace says otherwise."""

    def deadline(self, request: Request) -> float:
        """The loop time until which `request` may wait: one budget, whatever it waits for."""
        if request.deadline is None:
            request.deadline = asyncio.get_running_loop().time() + self.hold
        return request.deadline


Answer = Reply | Coroutine[Any, Any, Reply]
Function = Callable[[Front, Request, Target], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a kind of target. `handler` is the metric's label: Go kube2iam's name where it has one."""

    handler: str
    function: Function
    methods: frozenset[bytes] = READ
    needs_token: bool = True
    """Whether session tokens are looked at: all but the route that hands them out."""
