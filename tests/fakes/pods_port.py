"""The whole pods' port on real sockets: real index, policy, resolver, tokens and upstream client; STS is scripted.

Every pod has an address of 127.0.0.0/8, from which the test connects.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from kube2iam.domain.arn import BaseArn
from kube2iam.domain.errors import Reason, refused
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.policy import Policy
from kube2iam.domain.restrictions import Enforcement, Restrictions
from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.domain.session import SessionShape
from kube2iam.imds.allowlist import Allowlist
from kube2iam.imds.front import Front
from kube2iam.imds.keyfile import load_keys
from kube2iam.imds.listen import listen
from kube2iam.imds.server import Server
from kube2iam.imds.tokens import SessionTokens
from kube2iam.imds.upstream import Upstream
from kube2iam.resolve import Resolver
from kube2iam.settings import Settings
from tests.fakes.imds import ForgivingImds, forgiving_imds

ACCOUNT = "123456789012"
NODE = "127.0.0.1"
APP = "127.0.0.2"
OTHER = "127.0.0.3"
PLAIN = "127.0.0.4"
ODD = "127.0.0.5"
FORBIDDEN = "127.0.0.6"
FOREIGN = "127.0.0.7"
MALFORMED = "127.0.0.8"
STRANGER = "127.0.0.9"
STRICT = "127.0.0.10"

_ROLES = {
    APP: ("shop", "app", "pod-role"),
    OTHER: ("shop", "other", "neighbour-role"),
    PLAIN: ("shop", "plain", None),
    ODD: ("shop", "odd", "a+b,c@d"),
    FORBIDDEN: ("closed", "forbidden", "pod-role"),
    FOREIGN: ("shop", "foreign", "arn:aws:iam::999999999999:role/team/sub/far-role"),
    MALFORMED: ("shop", "malformed", "arn:aws:iam:123567989012:role/nginx-role"),
    STRICT: ("strict", "strict", "pod-role"),
}
OF_OTHERS = ("neighbour-role", "secret-of-neighbour-role", "token-of-neighbour-role")
"""What none but the pod at OTHER may see."""


def pod(address: str) -> Pod:
    """The pod at one of the addresses above."""
    namespace, name, role = _ROLES[address]
    annotations = None if role is None else {"iam.amazonaws.com/role": role}
    return Pod(namespace=namespace, name=name, uid=f"uid-{name}", created=1.0, ips=(address,), annotations=annotations)


def credentials_of(role: str, *, issued: int = 1_700_000_000) -> Credentials:
    """Credentials that tell whose they are."""
    key = sha256(role.encode()).hexdigest()[:16].upper()
    return Credentials(f"ASIA{key}", f"secret-of-{role}", f"token-of-{role}", issued + 3600, issued)


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class ScriptedCredentials:
    """The credential cache, as told: warm, or a reason why not. STS_PENDING waits until the deadline."""

    warm: bool = True
    refusal: Reason | None = None
    started: list[str] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=_set)

    def peek(self, request: AssumeRoleRequest) -> Credentials | None:
        return credentials_of(request.arn.name) if self.warm else None

    def serves(self, request: AssumeRoleRequest) -> bool:
        return self.warm

    def start(self, request: AssumeRoleRequest) -> None:
        self.started.append(str(request.arn))

    async def get(self, request: AssumeRoleRequest, deadline: float) -> Credentials:
        self.start(request)
        if self.refusal is Reason.STS_PENDING:
            await asyncio.sleep(deadline - asyncio.get_running_loop().time())
        if self.refusal is not None:
            raise refused(self.refusal, "scripted")
        return credentials_of(request.arn.name)


class Counted:
    """What was observed, by (handler, method, code)."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str, int], int] = {}
        self.denials: list[Reason] = []
        self.v1: list[str] = []

    def observer(self, handler: str, method: str, code: int) -> Callable[[float], None]:
        def observe(_seconds: float) -> None:
            self.seen[handler, method, code] = self.seen.get((handler, method, code), 0) + 1

        return observe

    def denied(self, reason: Reason) -> None:
        self.denials.append(reason)

    def without_token(self, namespace: str) -> None:
        self.v1.append(namespace)


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply as a pod sees it. Header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PodsPort:
    """The port and everything behind it that a test may change."""

    port: int
    imds: ForgivingImds
    index: PodIndex
    credentials: ScriptedCredentials
    counted: Counted

    async def get(self, path: str, *, source: str = APP, method: str = "GET", headers: Sequence[str] = ()) -> Answer:
        """One ordinary request on a connection of its own."""
        lines = [f"{method} {path} HTTP/1.1", "Host: 169.254.169.254", *headers, "Connection: close", "", ""]
        (answer,) = await self.send("\r\n".join(lines).encode("latin-1"), source=source, method=method)
        return answer

    async def send(
        self, raw: bytes, *, source: str = APP, method: str = "GET", wanted: int = 1, patience: float = 5.0
    ) -> list[Answer]:
        """The replies to `raw`: as many as `wanted`, or fewer if the port closes or says nothing for `patience` s."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        answers: list[Answer] = []
        try:
            async with asyncio.timeout(patience):
                writer.write(raw)
                while len(answers) < wanted:
                    answers.append(await _receive(reader, bodiless=method == "HEAD"))
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
        return answers

    async def everything(self, raw: bytes, *, source: str = APP, patience: float = 5.0) -> bytes:
        """All that the port says until it closes, or for `patience` seconds."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        said = b""
        try:
            async with asyncio.timeout(patience):
                writer.write(raw)
                while part := await reader.read(65_536):
                    said += part
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.transport.abort()
        return said

    async def token(self, source: str = APP, ttl: int = 60) -> str:
        """A session token of the pod at `source`."""
        header = f"X-aws-ec2-metadata-token-ttl-seconds: {ttl}"
        answer = await self.get("/latest/api/token", source=source, method="PUT", headers=[header])
        assert answer.status == 200
        return answer.body.decode()


async def _receive(reader: asyncio.StreamReader, *, bodiless: bool) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = b"" if bodiless else await reader.readexactly(int(headers["content-length"]))
    return Answer(int(first.split()[1]), headers, body, head + body)


def index_of_all() -> PodIndex:
    """An index that knows every pod above."""
    index = PodIndex(host_ips=[NODE])
    index.replace_pods([pod(address) for address in _ROLES])
    allowed = {"iam.amazonaws.com/allowed-roles": '["arn:*"]'}
    required = {"iam.amazonaws.com/imdsv2": "required"}
    index.replace_namespaces([Namespace("shop", allowed), Namespace("closed"), Namespace("strict", allowed | required)])
    return index


@asynccontextmanager
async def pods_port(
    state_dir: str, *, allow: Sequence[str] = (), deny: Sequence[str] = (), require_token: bool = False
) -> AsyncIterator[PodsPort]:
    """The port, listening; everything ends with the block."""
    async with forgiving_imds() as imds:
        index, credentials, counted = index_of_all(), ScriptedCredentials(), Counted()
        policy = Policy(
            shape=SessionShape(node="n1"),
            base=BaseArn.parse(f"arn:aws:iam::{ACCOUNT}:role/"),
            restrictions=Restrictions(enforcement=Enforcement.ON),
        )
        allowlist = Allowlist(allow, deny)
        upstream = Upstream(imds.address, named=allow)
        front = Front(
            resolver=Resolver(index=index, policy=policy, cache=credentials),
            pods=index,
            tokens=SessionTokens(load_keys(state_dir)),
            upstream=upstream,
            allowlist=allowlist,
            require_token=require_token,
        )
        server = Server(front, Settings(node="n1", max_request_rate=0.0), counted)
        sockets = listen(0)
        await server.start(sockets)
        try:
            yield PodsPort(
                port=sockets[0].getsockname()[1], imds=imds, index=index, credentials=credentials, counted=counted
            )
        finally:
            await server.drain(1.0)
            await upstream.aclose()
