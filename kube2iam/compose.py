"""The parts of an agent, built from its settings. Nothing here starts anything; that is app.py's."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

from kube2iam.admin.health import InstanceCheck
from kube2iam.admin.metrics import Metrics
from kube2iam.admin.reports import Reports
from kube2iam.domain.arn import BaseArn, RoleArn
from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Pod
from kube2iam.domain.policy import Policy
from kube2iam.domain.restrictions import Enforcement, PatternFormat, Restrictions
from kube2iam.domain.roles import AssumeRoleRequest, Grant
from kube2iam.domain.session import SessionShape, expand
from kube2iam.imds.allowlist import Allowlist
from kube2iam.imds.dispatch import IMDSV2
from kube2iam.imds.front import Front
from kube2iam.imds.keyfile import load_keys
from kube2iam.imds.tokens import SessionTokens
from kube2iam.imds.upstream import Upstream
from kube2iam.kube.reflector import Reflector
from kube2iam.redirect.coverage import Coverage
from kube2iam.redirect.keeper import RedirectKeeper
from kube2iam.redirect.none import NoneBackend
from kube2iam.resolve import Resolver
from kube2iam.settings import Settings
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.discover import discover_region
from kube2iam.sts.errors import CHAINED
from kube2iam.sts.intermediate import IntermediateRole
from kube2iam.sts.prefetch import Prefetch
from kube2iam.sts.source import StsSource

_LONGEST_HOLD = 0.8
"""Seconds: every client cuts a request at one."""


class Parts:
    """All parts of one agent but its servers. To be made inside a running loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.begun = time.time()
        """Seconds since the epoch."""
        self.metrics = Metrics()
        self.index = PodIndex(mine=mine(settings), host_ips=settings.host_ip)
        self.upstream = Upstream(
            settings.metadata_addr, named=settings.metadata_allow, failed=self.metrics.upstream_failure
        )
        self.sources: list[StsSource] = []
        """The pods' own first; behind it, where there is one, that of the intermediate role."""
        self.cache, self.intermediate = self._credentials()
        self.reports = Reports()
        self.resolver = Resolver(
            index=self.index, policy=_policy(settings), cache=self.cache, decided=self.reports.decided
        )
        self.prefetch = Prefetch(self.index, self.resolver.decide, self.cache)
        self.keys = load_keys(settings.state_dir)
        self.front = Front(
            resolver=self.resolver,
            pods=self.index,
            tokens=SessionTokens(self.keys),
            upstream=self.upstream,
            allowlist=Allowlist(settings.metadata_allow, settings.metadata_deny),
            hold=min(_LONGEST_HOLD, settings.backoff_max_elapsed_time),
            require_token=settings.imdsv2 == "required",
        )
        self.instance = InstanceCheck(self.upstream.instance_id, host_ip=next(iter(settings.host_ip), ""))
        self.keeper: RedirectKeeper | None = None
        """Set once the kernel's backend is chosen, if the agent keeps a rule there."""
        self.coverage: Coverage | None = None
        """Set together with it."""
        self.reflectors: list[Reflector[Any]] = []
        """Set once the API server's address is known."""
        self.listening = False
        self.warmed = not settings.prefetch

    def _credentials(self) -> tuple[CredentialCache, IntermediateRole | None]:
        """The way to credentials: straight, or through the role of `--assume-role-arn`."""
        settings, meter = self.settings, self.metrics
        make_source = partial(
            StsSource, region=settings.region, discover_region=partial(discover_region, self.upstream)
        )
        source, intermediate = make_source(), None
        self.sources.append(source)
        if settings.assume_role_arn:
            name = expand("{node}", {"node": settings.node_or_host})
            request = AssumeRoleRequest(RoleArn.parse(settings.assume_role_arn), name, CHAINED)
            intermediate = IntermediateRole(CredentialCache(source, meter=meter), request)
            source = make_source(signer=intermediate)
            self.sources.insert(0, source)
        cache = CredentialCache(
            source,
            chained=intermediate is not None,
            error_ttl=settings.iam_role_error_ttl,
            meter=meter,
            failed=self._sts_failed,
        )
        return cache, intermediate

    def _sts_failed(self, request: AssumeRoleRequest, denial: Denial) -> None:
        """Tell every pod that was granted what STS refuses; what is only late or away is no pod's business."""
        if denial.reason is not Reason.STS_REFUSED:
            return
        for pod in self.index.pods():
            decision = self.resolver.decide(pod)
            if isinstance(decision, Grant) and decision.request == request:
                self.reports.refused(pod, request.arn, denial)

    def keep(self, annotation: str) -> bool:
        """Whether any part reads this annotation of a pod or namespace."""
        return annotation == IMDSV2 or self.resolver.policy.keep(annotation)


def _policy(settings: Settings) -> Policy:
    return Policy(
        SessionShape.from_settings(settings),
        role_key=settings.iam_role_key,
        base=BaseArn.parse(settings.base_role_arn) if settings.base_role_arn else None,
        default_role=settings.default_role,
        namespace_defaults=settings.namespace_default_roles,
        restrictions=Restrictions(
            Enforcement(settings.namespace_restrictions),
            settings.namespace_key,
            PatternFormat(settings.namespace_restriction_format),
        ),
        discovering=settings.auto_discover_base_arn or settings.auto_discover_default_role,
    )


def keeps_redirect(settings: Settings) -> bool:
    """Whether the redirect is the agent's business: where others do it, it is theirs to know if it is there."""
    return settings.iptables and settings.redirect_backend != NoneBackend.name


def mine(settings: Settings) -> Callable[[Pod], bool]:
    """Says of a pod whether it runs on this node."""
    if settings.node:
        return lambda pod: pod.node == settings.node
    if settings.host_ip:
        return lambda pod: any(ip in settings.host_ip for ip in pod.host_ips)
    return lambda pod: any(_is_local(ip) for ip in pod.host_ips)


@cache
def _is_local(address: str) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.bind((address, 0))
        return True
    return False
