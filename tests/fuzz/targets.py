"""What is fed with nonsense: each target takes bytes and may raise only what it promises.

Whatever else comes out of it is a finding: another exception, an answer that breaks a rule, over 100 ms of work.
`FOUND` keeps the inputs that once were findings.
"""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from kube2iam import parse
from kube2iam.domain.arn import BaseArn, MalformedRoleError, RoleArn, complete
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import MalformedObjectError, Namespace, Pod
from kube2iam.domain.policy import Policy
from kube2iam.domain.restrictions import Enforcement, PatternFormat, Restrictions, UnreadableAnnotationError
from kube2iam.domain.roles import Grant
from kube2iam.domain.session import SessionShape
from kube2iam.domain.tags import SessionTags
from kube2iam.imds.allowlist import Allowlist
from kube2iam.imds.guard import may_leave
from kube2iam.imds.paths import BadTargetError, Kind
from kube2iam.imds.paths import parse as parse_target
from kube2iam.imds.tokens import SessionTokens, key_id, parse_ttl
from tests.contract.hostile import SECRETS, request, rows
from tests.fakes.imds import CANARIES
from tests.fakes.pods_port import OF_OTHERS, PodsPort

_BASE = BaseArn.parse("arn:aws:iam::123456789012:role/")
_ARN = RoleArn.parse("arn:aws:iam::123456789012:role/team/app")
_ANNOTATIONS = (
    "iam.amazonaws.com/role",
    "iam.amazonaws.com/external-id",
    "iam.amazonaws.com/session-duration",
    "iam.amazonaws.com/session-policy-arns",
    "iam.amazonaws.com/session-tag.team",
    "iam.amazonaws.com/allowed-roles",
    "iam.amazonaws.com/default-role",
)
_OPEN = Allowlist(["meta-data/.*", "dynamic/.*", "(a|aa)*x.{9}"], ["(.*a){9}"])


@dataclass(frozen=True, slots=True)
class Target:
    """A function that is fed, what it begins with, and what it may raise. `objects`: change the JSON, not its bytes."""

    run: Callable[[bytes], Awaitable[None] | None]
    seeds: tuple[bytes, ...]
    expected: tuple[type[Exception], ...] = ()
    objects: bool = False
    share: int = 1
    """Of the time, beside the others."""


class _Key:
    def minting(self, _now: float) -> bytes:
        return b"k" * 32

    def find(self, wanted: bytes) -> bytes | None:
        return b"k" * 32 if wanted == key_id(b"k" * 32) else None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def paths(data: bytes) -> None:
    """Only canonical paths that the guard lets pass are passed through."""
    for allowlist in (Allowlist(), _OPEN):
        found = parse_target(data, allowlist)
        if found.kind in {Kind.METADATA, Kind.LISTING}:
            assert may_leave(found.path)
            again = parse_target(f"/latest/{found.path}".encode("ascii"), allowlist)
            assert (again.kind, again.path) == (found.kind, found.path)


def arn(data: bytes) -> None:
    """What parses is spelt as it was written."""
    text = _text(data)
    made = complete(text, _BASE)
    assert RoleArn.parse(str(made)) == made
    assert str(made) == text or str(made).endswith(text.removeprefix("/"))


def settings_texts(data: bytes) -> None:
    """Durations and the other texts of flags."""
    text = _text(data)
    readers: tuple[Callable[[str], object], ...] = (
        parse.duration, parse.boolean, parse.port, parse.addresses, parse.endpoint, parse.server_url,
        parse.whole_number, parse.decimal_number,
    )  # fmt: skip
    for read in readers:
        try:
            found = read(text)
        except ValueError:
            continue
        if read is parse.duration:
            assert isinstance(found, float)
            assert found >= 0


def annotations(data: bytes) -> None:
    """Any annotation leads to a decision."""
    name, _, value = _text(data).partition("=")
    raw = {name: value, "iam.amazonaws.com/role": "app"} if name in _ANNOTATIONS else {"iam.amazonaws.com/role": value}
    shape = SessionShape(node="n1", name="{namespace}.{pod}", tags=SessionTags("iam.amazonaws.com/session-tag.", "c"))
    policy = Policy(shape=shape, base=_BASE, namespace_defaults=True, restrictions=Restrictions(Enforcement.ON))
    pod = Pod("shop", "app", "uid", 1.0, annotations=raw)
    for namespace in (Namespace("shop", raw), Namespace("shop", {"iam.amazonaws.com/allowed-roles": '["*"]'})):
        decision = policy.decide(pod, namespace)
        if isinstance(decision, Grant):
            assert re.fullmatch(r"[\w+=,.@-]{2,64}", decision.request.session_name, re.ASCII)
            assert 900 <= decision.request.duration <= 43_200


def namespace_patterns(data: bytes) -> None:
    """A namespace's patterns, in both formats, as the JSON that they are or as one pattern."""
    text = _text(data)
    for spelt in (text, json.dumps([text])):
        for form in PatternFormat:
            try:
                Restrictions(Enforcement.ON, format=form).allows(spelt, _ARN, _BASE)
            except UnreadableAnnotationError:
                continue


def tokens(data: bytes) -> None:
    """No bytes are a token but ours."""
    ours = SessionTokens(_Key(), lambda: 1_700_000_000.0)
    good = ours.mint("10.0.0.1", "uid", 60)
    assert ours.verify(data, "10.0.0.1", "uid") is (data == good)
    ttl = parse_ttl(data)
    assert ttl is None or 1 <= ttl <= 21_600


def api_objects(data: bytes) -> None:
    """An object of any shape is a pod, a namespace or malformed; and the index bears it."""
    try:
        raw: Any = json.loads(data)
    except ValueError:
        return
    index = PodIndex(clock=lambda: 1_700_000_000.0)
    index.replace_pods([])
    index.replace_namespaces([Namespace("shop")])
    try:
        pod = Pod.from_raw(raw, lambda name: name in _ANNOTATIONS)
    except MalformedObjectError:
        pass
    else:
        index.upsert_pod(pod)
        for address in pod.ips:
            index.find(address)
        index.remove_pod(pod.uid)
    namespace = Namespace.from_raw(raw, lambda name: name in _ANNOTATIONS)
    index.upsert_namespace(namespace)


def requests(port: PodsPort) -> Callable[[bytes], Awaitable[None]]:
    """The whole pods' port: no 500, no canary, and a later request on a new connection is answered."""
    unseen = [text.encode() for text in (*CANARIES, *OF_OTHERS)]
    honest = request("GET /latest/meta-data/iam/security-credentials/", ["Connection: close"])

    async def run(data: bytes) -> None:
        said = await port.everything(data + honest, patience=0.05)
        assert not any(text in said for text in unseen)
        assert not re.search(rb"HTTP/1\.1 5\d\d ", said)
        if not said.endswith(b"pod-role"):
            assert (await port.everything(honest)).endswith(b"\r\n\r\npod-role")

    return run


_POD = {
    "metadata": {
        "namespace": "shop",
        "name": "app",
        "uid": "1-2-3",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "deletionTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {"iam.amazonaws.com/role": "app", "iam.amazonaws.com/allowed-roles": '["*"]'},
    },
    "spec": {"nodeName": "n1", "hostNetwork": False, "serviceAccountName": "default"},
    "status": {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
        "hostIP": "10.1.0.1",
        "hostIPs": [{"ip": "10.1.0.1"}],
        "containerStatuses": [{"state": {"terminated": {}}}],
        "initContainerStatuses": [{"state": {"running": {}}}],
    },
}
_ARNS = (b"arn:aws:iam::123456789012:role/app", b"arn:aws-cn:iam::123456789012:role/a/b/c", b"app", b"team/app",
         b"arn:aws:iam:123567989012:role/nginx-role", b"arn:aws:sts::123456789012:assumed-role/app/x")  # fmt: skip


def targets(port: PodsPort) -> dict[str, Target]:
    """All of them, by name."""
    spelt = tuple(f"/latest/{path}".encode() for path in SECRETS)
    whole = tuple(row.raw for row in rows("x" * 56) if len(row.raw) < 2000)
    token = SessionTokens(_Key(), lambda: 1_700_000_000.0).mint("10.0.0.1", "uid", 60)
    patterns = (b'["app", "team/*"]', b"(a+)+$", b"arn:aws:iam::.*:role/.*", b"^(?:x|xx)*y", b"[[:alpha:]]{1,100}")
    values = tuple(
        f"{name}={value}".encode() for name in _ANNOTATIONS for value in ("app", "7200", "2h", '["a"]', "x:y")
    )
    texts = (
        b"1h30m",
        b"500ms",
        b"0",
        b"1.5h",
        b"169.254.169.254:80",
        b"[fd00::1]:80",
        b"true",
        b"8181",
        b"https://a:1",
    )
    return {
        "requests": Target(requests(port), whole, share=5),
        "paths": Target(paths, (*spelt, b"/latest/meta-data/iam/security-credentials/a%2Bb"), (BadTargetError,)),
        "arn": Target(arn, _ARNS, (MalformedRoleError,)),
        "settings": Target(settings_texts, texts),
        "annotations": Target(annotations, values),
        "patterns": Target(namespace_patterns, patterns),
        "tokens": Target(tokens, (token, b"21600")),
        "objects": Target(api_objects, (json.dumps(_POD).encode(),), (MalformedObjectError,), objects=True),
    }


FOUND: dict[str, tuple[bytes, ...]] = {
    "requests": (),
    "paths": (b"/latest/meta-data/.l",),
    "arn": (),
    "settings": (),
    "annotations": (),
    "patterns": (b"\x99", b'["\\ud800"]'),
    "tokens": (),
    "objects": (
        json.dumps({**_POD, "status": {"containerStatuses": -1}}).encode(),
        json.dumps({**_POD, "status": {"phase": [None]}}).encode(),
    ),
}
"""Inputs that once made a target fail."""

_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, "", "x", "\ud800", [], {}, [None], {"ip": 1}, [[]], "a" * 1000,
    "10.0.0.1", "::ffff:1.2.3.4", "fe80::1%eth0", "2026-13-01T00:00:00Z", "2026-01-01",
)  # fmt: skip
_PIECES = (
    b"\x00", b"\r\n", b"\n", b"\r", b" ", b"\t", b"%", b"%2f", b"%00", b"/", b"..", b"\\", b";", b":", b",", b"\xff",
    b"\xc3\xa9", b"[", b"]", b"(", b")", b"*", b"+", b"{", b"}", b'"', b"?", b"#", b"-", b"0", b"9" * 30, b"arn:",
    b"GET ", b"HTTP/1.1", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"(?i)", b"(a|a)*", b"{1,1000}", b"\\ud800",
)  # fmt: skip


def changed(data: bytes, random: Random, *, objects: bool) -> bytes:
    """`data`, made a little worse."""
    if objects:
        return json.dumps(_worse(json.loads(data), random)).encode()
    raw = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randint(0, len(raw))
        match random.randrange(5):
            case 0:
                raw[at:at] = random.choice(_PIECES)
            case 1:
                del raw[at : at + random.choice((1, 1, 4, 16))]
            case 2:
                raw[at : at + 1] = bytes([random.randrange(256)])
            case 3:
                raw[at:at] = raw[max(0, at - random.randint(1, 32)) : at] * random.choice((1, 2, 50))
            case _:
                raw[at : at + random.choice((0, 1, 3))] = random.choice(_PIECES)
    return bytes(raw[:20_000])


def _worse(value: Any, random: Random) -> Any:
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        return random.choice(_ODD)
    key = random.choice(list(value) if isinstance(value, dict) else list(range(len(value))))
    made = value.copy()
    if isinstance(made, dict) and random.random() < 0.1:
        del made[key]
    else:
        made[key] = _worse(value[key], random)
    return made
