import asyncio
from dataclasses import replace

import pytest

from kube2iam.domain.arn import BaseArn
from kube2iam.domain.errors import Denial, Reason, RefusedError, refused
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.policy import Policy
from kube2iam.domain.restrictions import Enforcement, Restrictions
from kube2iam.domain.roles import AssumeRoleRequest, Credentials, Decision
from kube2iam.domain.session import SessionShape
from kube2iam.resolve import Resolver

ADDRESS = "10.1.0.5"
POLICY = Policy(SessionShape(node="n1"), base=BaseArn.parse("arn:aws:iam::123456789012:role/"))
RESTRICTED = replace(POLICY, restrictions=Restrictions(Enforcement.ON))
SOON = 0.05


class NoCache:
    """Has no credentials and fetches none."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.calls: list[str] = []

    def peek(self, request: AssumeRoleRequest) -> Credentials | None:
        return None

    def serves(self, request: AssumeRoleRequest) -> bool:
        return False

    def start(self, request: AssumeRoleRequest) -> None:
        self.calls.append("start")

    async def get(self, request: AssumeRoleRequest, deadline: float) -> Credentials:
        self.calls.append("get")
        raise refused(Reason.STS_REFUSED, "scripted")


def pod(uid: str = "a", role: str = "app", **fields: object) -> Pod:
    made = Pod("shop", f"pod-{uid}", uid, created=1, ips=(ADDRESS,), annotations={"iam.amazonaws.com/role": role})
    return replace(made, **fields)  # type: ignore[arg-type]  # a test's shorthand


@pytest.fixture
def index() -> PodIndex:
    index = PodIndex()
    index.replace_pods([])
    index.replace_namespaces([Namespace("shop")])
    return index


def resolver(index: PodIndex, policy: Policy = POLICY, heard: list[Decision] | None = None) -> Resolver:
    decided = [] if heard is None else heard
    return Resolver(
        index=index, policy=policy, cache=NoCache(), decided=lambda _pod, decision: decided.append(decision)
    )


def after(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def reason(resolver: Resolver, within: float) -> str:
    with pytest.raises(RefusedError) as refusal:
        await resolver.grant(ADDRESS, after(within))
    return refusal.value.denial.reason.code


async def test_a_pod_unknown_at_the_request_is_answered_when_the_watch_brings_it(index: PodIndex) -> None:
    spine = resolver(index)
    held = asyncio.create_task(spine.grant(ADDRESS, after(30)))
    await asyncio.sleep(0)
    assert not held.done()
    index.upsert_pod(pod())
    async with asyncio.timeout(1):
        assert (await held).arn.name == "app"
    assert not index._wakes


async def test_an_address_never_known_is_refused_at_the_deadline(index: PodIndex) -> None:
    begun = asyncio.get_running_loop().time()
    assert await reason(resolver(index), SOON) == "unknown-address"
    assert SOON <= asyncio.get_running_loop().time() - begun < 1


async def test_a_final_denial_is_not_held(index: PodIndex) -> None:
    index.upsert_pod(pod(role="not a role"))
    assert await reason(resolver(index), 30) == "role-malformed"


async def test_a_namespace_not_seen_yet_is_waited_for(index: PodIndex) -> None:
    index.upsert_pod(pod(namespace="new"))
    held = asyncio.create_task(resolver(index, RESTRICTED).grant(ADDRESS, after(30)))
    await asyncio.sleep(0)
    index.upsert_namespace(Namespace("new", {"iam.amazonaws.com/allowed-roles": '["app"]'}))
    async with asyncio.timeout(1):
        assert (await held).arn.name == "app"


async def test_both_lists_are_waited_for() -> None:
    index = PodIndex()
    held = asyncio.create_task(resolver(index).grant(ADDRESS, after(30)))
    await asyncio.sleep(0)
    index.replace_pods([pod()])
    index.replace_namespaces([])
    async with asyncio.timeout(1):
        assert (await held).arn.name == "app"


async def test_two_claimants_get_nothing_until_one_is_gone(index: PodIndex) -> None:
    index.replace_pods([pod("a"), pod("b", role="other")])
    assert await reason(resolver(index), SOON) == "ambiguous-address"
    held = asyncio.create_task(resolver(index).grant(ADDRESS, after(30)))
    await asyncio.sleep(0)
    index.remove_pod("a")
    async with asyncio.timeout(1):
        assert (await held).arn.name == "other"


@pytest.mark.parametrize(("answer", "expected"), [(pod("b", role="other"), "other"), (None, "ambiguous-address")])
async def test_the_api_server_may_break_a_tie(index: PodIndex, answer: Pod | None, expected: str) -> None:
    index.replace_pods([pod("a"), pod("b", role="other")])

    async def ask(_address: str) -> Pod | None:
        return answer

    spine = resolver(index)
    spine.tie_break = ask
    if answer is None:
        assert await reason(spine, 30) == expected
    else:
        assert (await spine.grant(ADDRESS, after(30))).arn.name == expected


async def test_a_tie_break_that_hangs_ends_at_the_deadline(index: PodIndex) -> None:
    index.replace_pods([pod("a"), pod("b")])

    async def ask(_address: str) -> Pod | None:
        await asyncio.Event().wait()
        return None

    spine = resolver(index)
    spine.tie_break = ask
    assert await reason(spine, SOON) == "ambiguous-address"


def test_a_decision_is_made_once_for_each_version_of_the_pod(index: PodIndex) -> None:
    heard: list[Decision] = []
    spine = resolver(index, heard=heard)
    index.upsert_pod(pod())
    first = spine.peek(ADDRESS)
    assert spine.peek(ADDRESS) is first
    index.upsert_pod(pod(service_account="other"))
    again = spine.peek(ADDRESS)
    assert again is not first
    assert len(heard) == 1
    index.upsert_pod(pod(role="changed"))
    assert spine.peek(ADDRESS).arn.name == "changed"
    assert len(heard) == 2


def test_a_change_of_the_namespace_counts_at_the_next_request(index: PodIndex) -> None:
    spine = resolver(index, RESTRICTED)
    index.upsert_pod(pod())
    index.upsert_namespace(Namespace("shop", {"iam.amazonaws.com/allowed-roles": '["app"]'}))
    assert spine.peek(ADDRESS).arn.name == "app"
    index.upsert_namespace(Namespace("shop", {"iam.amazonaws.com/allowed-roles": "[]"}))
    with pytest.raises(RefusedError, match="namespace-denied"):
        spine.peek(ADDRESS)


def test_a_discovered_base_arn_counts_at_the_next_request(index: PodIndex) -> None:
    spine = resolver(index, replace(POLICY, discovering=True))
    index.upsert_pod(pod())
    with pytest.raises(RefusedError, match="not-ready"):
        spine.peek(ADDRESS)
    spine.policy = POLICY
    assert spine.peek(ADDRESS).arn.name == "app"


def test_decisions_about_pods_that_are_gone_are_forgotten(index: PodIndex) -> None:
    spine = resolver(index)
    for number in range(200):
        index.replace_pods([pod(f"u{number}")])
        spine.peek(ADDRESS)
    assert len(spine._decisions) < 100


def test_denials_are_heard_of_too(index: PodIndex) -> None:
    heard: list[Decision] = []
    spine = resolver(index, heard=heard)
    index.upsert_pod(pod(role="not a role"))
    for _ in range(3):
        with pytest.raises(RefusedError):
            spine.peek(ADDRESS)
    (denial,) = heard
    assert isinstance(denial, Denial)


async def test_credentials_are_prepared_without_waiting_for_an_agent_that_has_only_just_begun(index: PodIndex) -> None:
    index.upsert_pod(pod())
    cache = NoCache()
    spine = Resolver(index=index, policy=POLICY, cache=cache)
    await spine.prepare(spine.peek(ADDRESS), after(1))
    assert cache.calls == ["start"]
    cache.ready.set()
    await spine.prepare(spine.peek(ADDRESS), after(1))
    assert cache.calls == ["start", "get"]
