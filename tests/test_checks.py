"""What operators see of the parts of an agent, each in the state that a test brings it to."""

import asyncio
import re
import time
from pathlib import Path

import pytest

from kube2iam.checks import add_gauges, health_of
from kube2iam.compose import Parts
from kube2iam.domain.errors import RefusedError
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.imds.limits import PodLimits
from kube2iam.redirect.coverage import Coverage
from kube2iam.redirect.routes import Route
from kube2iam.settings import Settings
from kube2iam.sts.errors import fault
from kube2iam.sts.intermediate import IntermediateRole
from kube2iam.sts.prefetch import Prefetch
from tests.fakes.sts import ScriptedSts, request, running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(node="n1", state_dir=str(tmp_path), assume_role_arn="arn:aws:iam::123456789012:role/hub")


@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken"])
async def test_trouble_with_the_intermediate_role_is_shown_before_any_pod_needs_it(
    settings: Settings, code: str
) -> None:
    parts, sts, hub = Parts(settings), ScriptedSts(delay=lambda _request: 0), request("hub")
    health = health_of(parts)
    async with running(sts) as cache:
        parts.intermediate = IntermediateRole(cache, hub)
        await cache.get(hub, asyncio.get_running_loop().time() + 5)
        assert "node-credentials" not in health.troubles()
        sts.script = lambda _request: fault(code)
        cache.renew(hub)
        with pytest.raises(RefusedError):
            await cache.get(hub, asyncio.get_running_loop().time() + 5)
        assert health.troubles()["node-credentials"].startswith(f"{code}: the intermediate role {hub.arn} cannot")
        assert f"[!]node-credentials degraded: {code}: " in health.readyz(verbose=True).body.decode()
    await parts.upstream.aclose()


async def test_pods_that_the_rule_leaves_out_degrade_the_agent_and_do_not_stop_it(settings: Settings) -> None:
    def route(address: str) -> Route | None:
        return Route("cali1", direct=True) if address == "10.0.0.1" else None

    parts = Parts(settings)
    health = health_of(parts)
    add_gauges(parts, health, PodLimits())
    parts.coverage = Coverage("docker0", lambda: [("10.0.0.1",)], period=1.0, route=route)
    assert "redirect" not in health.troubles()
    await parts.coverage.look()
    assert "does not match cali1" in health.troubles()["redirect"]
    assert "redirect" not in health.missing()
    assert "kube2iam_redirect_unmatched_pods 1.0" in parts.metrics.render().decode()
    await parts.upstream.aclose()


async def test_what_to_alert_on(tmp_path: Path) -> None:
    """How long sessions last, what STS refuses, what restrictions would deny."""
    base = "arn:aws:iam::123456789012:role/"
    settings = Settings(node="n1", state_dir=str(tmp_path), namespace_restrictions="report-only", base_role_arn=base)
    parts, sts = Parts(settings), ScriptedSts(delay=lambda _request: 0)
    sts.script = lambda asked: fault("AccessDenied") if asked.arn.name == "refused" else None
    async with running(sts) as cache:
        parts.cache = cache
        health = health_of(parts)
        add_gauges(parts, health, PodLimits())
        before = parts.metrics.render().decode()
        assert "\nkube2iam_credentials_shortest_life_seconds" not in before
        assert 'kube2iam_degraded{cause="sts-refused"} 0.0' in before
        assert 'kube2iam_denials_total{reason="role-malformed"} 0.0' in before
        assert 'kube2iam_upstream_failures_total{kind="timeout"} 0.0' in before
        parts.index.replace_namespaces([Namespace("shop"), Namespace("other")])
        for name, namespace in (("app", "shop"), ("refused", "shop"), ("app", "other")):
            pod = Pod(
                namespace, f"{name}-pod", f"{namespace}-{name}", 1.0, "n1", annotations={"iam.amazonaws.com/role": name}
            )
            parts.index.upsert_pod(pod)
        parts.index.replace_pods(parts.index.pods())
        parts.prefetch = Prefetch(parts.index, parts.resolver.decide, cache)
        following = asyncio.create_task(parts.prefetch.run())
        await parts.prefetch.primed.wait()
        cache.want([request(), request("refused")])
        await cache.warm(5)
        shown = parts.metrics.render().decode()
        assert "kube2iam_credentials_refused 1.0" in shown
        assert 'kube2iam_would_deny_pods{namespace="shop"} 2.0' in shown
        assert 'kube2iam_would_deny_pods{namespace="other"} 1.0' in shown
        (life,) = re.findall("^kube2iam_credentials_shortest_life_seconds (.+)$", shown, re.MULTILINE)
        assert float(life) == pytest.approx(sts.clock() + 3600 - time.time(), abs=60)
        assert "sts-refused" not in health.troubles()
        cache.want([request("refused"), request("refused", external_id="other")])
        await cache.warm(5)
        assert health.troubles()["sts-refused"].startswith("STS refuses all 2 sessions of this node")
        following.cancel()
        await asyncio.wait({following})
    await parts.upstream.aclose()
