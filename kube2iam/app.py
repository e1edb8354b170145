"""The composition root: builds every part, owns every loop, and knows the order of start and stop."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

from kube2iam import __version__
from kube2iam._build import COMMIT, DATE
from kube2iam.admin.health import Check, Health, InstanceCheck, Page, announce
from kube2iam.admin.metrics import CONTENT_TYPE, Metrics
from kube2iam.admin.reports import Reports
from kube2iam.admin.server import AdminServer, Pages, answer
from kube2iam.admin.store import store_page
from kube2iam.domain.arn import BaseArn, RoleArn
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Pod
from kube2iam.domain.policy import Policy
from kube2iam.domain.restrictions import Enforcement, PatternFormat, Restrictions
from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.domain.session import SessionShape, expand
from kube2iam.imds.allowlist import Allowlist
from kube2iam.imds.dispatch import IMDSV2
from kube2iam.imds.front import Front
from kube2iam.imds.keyfile import load_keys
from kube2iam.imds.listen import listen
from kube2iam.imds.server import Server
from kube2iam.imds.tokens import SessionTokens
from kube2iam.imds.upstream import Upstream
from kube2iam.kube.api import ClusterApi
from kube2iam.kube.duplicates import DuplicateResolver
from kube2iam.kube.errors import ClusterConfigError
from kube2iam.kube.recorder import EventRecorder
from kube2iam.kube.reflector import Reflector
from kube2iam.kube.stores import NamespaceStore, PodStore
from kube2iam.redirect.backends import choose, others
from kube2iam.redirect.keeper import RedirectKeeper
from kube2iam.redirect.routes import follow
from kube2iam.redirect.rule import RedirectError, RedirectRule
from kube2iam.resolve import Resolver
from kube2iam.settings import Settings
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.discover import discover_base_arn, discover_default_role, discover_region
from kube2iam.sts.durations import FittedDurations
from kube2iam.sts.intermediate import IntermediateRole
from kube2iam.sts.prefetch import Prefetch
from kube2iam.sts.source import StsSource

log = logging.getLogger(__name__)

WARMING = 5.0
"""Seconds that a fresh agent may take to fetch its pods' credentials before it is ready without them."""

_LONGEST_HOLD = 0.8
"""Seconds: every client cuts a request at one."""

_CHAINED = 3600
"""Seconds that the session of an intermediate role lasts: the most for a role that is assumed by a role.

https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles.html#iam-term-role-chaining
"""

Loop = Coroutine[Any, Any, None]


class StartError(Exception):
    """The agent can't run as it was told; the message is one line that names the setting and the mend."""


def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit status: 0, 1 for a failed part, 2 for a bad setting."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except StartError as error:
        log.error("%s", error)  # noqa: TRY400 - one line says it
        return 2
    except Exception:
        log.exception("a part of the agent has failed")
        return 1
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where it is installed: it serves twice the requests of asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log.info("starting", extra={"version": __version__, "commit": COMMIT})
    await Agent(settings).run(stop)
    log.info("stopped")


class Agent:
    """All parts of one agent. To be made inside a running loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._index = PodIndex(mine=_mine(settings), host_ips=settings.host_ip)
        self._upstream = Upstream(
            settings.metadata_addr, named=settings.metadata_allow, failed=self._metrics.upstream_failure
        )
        self._source, self._cache, self._intermediate = _credentials(settings, self._upstream, self._metrics)
        self._reports = Reports()
        self._duplicates: DuplicateResolver | None = None
        self._resolver = Resolver(
            index=self._index, policy=_policy(settings), cache=self._cache, decided=self._reports.decided
        )
        self._prefetch = Prefetch(self._index, self._resolver.decide, self._cache)
        self._keys = load_keys(settings.state_dir)
        front = Front(
            resolver=self._resolver,
            pods=self._index,
            tokens=SessionTokens(self._keys),
            upstream=self._upstream,
            allowlist=Allowlist(settings.metadata_allow, settings.metadata_deny),
            hold=min(_LONGEST_HOLD, settings.backoff_max_elapsed_time),
            require_token=settings.imdsv2 == "required",
        )
        self._own_port = settings.metrics_port_or_app != settings.app_port
        self._server = Server(front, settings, self._metrics, None if self._own_port else self._shared_page)
        self._instance = InstanceCheck(self._upstream.instance_id, host_ip=next(iter(settings.host_ip), ""))
        self._keeper: RedirectKeeper | None = None
        self._reflectors: list[Reflector[Any]] = []
        self._listening = False
        self._warmed = not settings.prefetch
        self._health = Health(ready=self._ready_checks(), degraded=self._degraded_checks())
        self._gauges()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; raises StartError, or an ExceptionGroup if a part fails."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._upstream.aclose)
            closing.callback(self._source.close)
            await self._listen(closing)
            await self._redirect()
            cluster = await self._connect(closing)
            async with asyncio.TaskGroup() as group:
                loops: list[asyncio.Task[None]] = [
                    group.create_task(_for_ever(name, loop)) for name, loop in self._loops(cluster)
                ]
                loops.extend(group.create_task(once) for once in self._starters())
                await stop.wait()
                log.info("stopping")
                self._health.stopping = True
                await self._server.drain()
                for loop in loops:
                    loop.cancel()
            if self._keeper is not None and self._settings.redirect_on_exit == "remove":
                await self._keeper.remove()

    # Start, in this order

    async def _listen(self, closing: AsyncExitStack) -> None:
        if self._own_port:
            admin = AdminServer(self._pages(), port=self._settings.metrics_port_or_app)
            with _port("--metrics-port", self._settings.metrics_port_or_app):
                await admin.start()
            closing.push_async_callback(admin.stop)
        with _port("--app-port", self._settings.app_port):
            sockets = listen(self._settings.app_port)
        for listener in sockets:
            closing.callback(listener.close)
        await self._server.start(sockets)
        self._listening = True
        log.info(
            "listening", extra={"port": self._settings.app_port, "metrics.port": self._settings.metrics_port_or_app}
        )

    async def _redirect(self) -> None:
        """From here on the node is closed: what pods ask reaches the agent, or nobody."""
        if not self._settings.iptables:
            return
        try:
            rule = RedirectRule.of(self._settings.host_ip, self._settings.app_port, self._settings.host_interface)
            backend = await choose(self._settings.redirect_backend)
        except RedirectError as error:
            raise StartError(str(error)) from None
        self._keeper = RedirectKeeper(
            backend,
            follow(rule, self._index.addresses),
            period=self._settings.redirect_check_period,
            metrics=self._metrics,
            leftovers=others(backend),
        )
        await self._keeper.ensure()

    async def _connect(self, closing: AsyncExitStack) -> ClusterApi:
        settings = self._settings
        try:
            cluster = await ClusterApi.connect(
                kubeconfig=settings.kubeconfig,
                api_server=settings.api_server,
                api_token=settings.api_token,
                insecure=settings.insecure,
            )
        except ClusterConfigError as error:
            raise StartError(str(error)) from None
        closing.push_async_callback(cluster.aclose)
        return cluster

    def _loops(self, cluster: ClusterApi) -> Iterator[tuple[str, Loop]]:
        """Every loop of the agent; each runs until the end."""
        settings, metrics = self._settings, self._metrics
        recorder = EventRecorder(cluster, node=settings.node_or_host, counters=metrics)
        self._reports.recorder = recorder
        pods = PodStore(self._index, self._keep)
        selector = f"spec.nodeName={settings.node}" if settings.node else ""
        mirror = partial(Reflector, cluster, counters=metrics, resync=settings.cache_resync_period)
        self._reflectors = [
            mirror(pods, resource="pods", field_selector=selector),
            mirror(NamespaceStore(self._index, self._keep), resource="namespaces"),
        ]
        if settings.resolve_duplicate_cache_ips:
            self._duplicates = DuplicateResolver(
                cluster, project=pods.project, mine=_mine(settings), node=settings.node, counters=metrics
            )
            self._resolver.tie_break = self._duplicates.resolve
        for reflector in self._reflectors:
            yield f"watch of {reflector.resource}", reflector.run()
        yield "events", recorder.run()
        yield "credentials", self._cache.run()
        yield "token keys", self._keys.run()
        yield "health check", self._instance.run()
        yield "readiness", announce(self._health)
        if self._intermediate is not None:
            yield "intermediate role", self._intermediate.run()
        if settings.prefetch:
            yield "prefetch", self._prefetch.run()
        if self._keeper is not None:
            yield "redirect", self._keeper.run()

    def _starters(self) -> Iterator[Loop]:
        """What is done once, while the loops already run."""
        if self._resolver.policy.discovering:
            yield self._discover()
        if self._settings.prefetch:
            yield self._warm()

    async def _discover(self) -> None:
        """Learn the base ARN and the default role of `--auto-discover-…`; until then nothing is decided."""
        settings = self._settings
        await self._cache.ready.wait()
        base = await discover_base_arn(self._upstream, self._source.caller)
        default = settings.default_role
        if settings.auto_discover_default_role:
            default = str(await discover_default_role(self._upstream, self._source.caller))
        log.info("discovered", extra={"base.role.arn": str(base), "default.role": default})
        self._resolver.policy = replace(self._resolver.policy, base=base, default_role=default, discovering=False)
        self._prefetch.changed()

    async def _warm(self) -> None:
        await self._prefetch.primed.wait()
        missing = await self._cache.warm(WARMING)
        self._warmed = True
        if missing:
            roles = sorted({str(request.arn) for request in missing})
            log.warning("ready without some roles' credentials", extra={"roles": ", ".join(roles)})

    def _keep(self, annotation: str) -> bool:
        return annotation == IMDSV2 or self._resolver.policy.keep(annotation)

    # What operators see

    def _ready_checks(self) -> list[Check]:
        policy = self._resolver
        return [
            Check("listener", lambda: None if self._listening else "the pods' port is not open yet"),
            Check("cluster", lambda: None if self._index.synced else self._cluster_trouble() or "listing"),
            Check("sts", lambda: None if self._cache.ready.is_set() else "the STS client is not made yet"),
            Check("roles", lambda: "the base ARN is being discovered" if policy.policy.discovering else None),
            Check("credentials", lambda: None if self._warmed else f"{len(self._cache.missing())} still to be fetched"),
            Check("redirect", self._redirect_trouble),
        ]

    def _degraded_checks(self) -> list[Check]:
        return [
            Check("cluster", self._cluster_trouble),
            Check("sts", lambda: None if self._cache.trouble is None else self._cache.trouble.explanation),
            Check("credentials", self._late_credentials),
            Check("metadata", lambda: self._instance.problem),
        ]

    def _cluster_trouble(self) -> str | None:
        return next((reflector.trouble for reflector in self._reflectors if reflector.trouble), None)

    def _redirect_trouble(self) -> str | None:
        if not self._settings.iptables or (self._keeper is not None and self._keeper.present):
            return None
        return (self._keeper and self._keeper.last_error) or "the rule is not in the kernel yet"

    def _late_credentials(self) -> str | None:
        late = self._cache.missing()
        return f"{len(late)} roles' credentials could not be fetched" if late else None

    def _pages(self) -> Pages:
        pages = {
            "/healthz": lambda _query: self._instance.healthz(),
            "/livez": lambda _query: self._health.livez(),
            "/readyz": lambda query: self._health.readyz(verbose="verbose" in query),
            "/metrics": lambda _query: Page(200, CONTENT_TYPE, self._metrics.render()),
        }
        if self._settings.debug and self._own_port:
            pages["/debug/store"] = lambda _query: store_page(self._index, self._resolver.policy)
        return pages

    async def _shared_page(self, path: str, query: str) -> tuple[int, str, bytes]:
        page = answer(self._pages(), f"/{path}", query)
        return page.status, page.content_type, page.body

    def _gauges(self) -> None:
        add, limits = self._metrics.add, self._server.limits
        add("info", "Build.", lambda: {(__version__, DATE, COMMIT): 1}, "version", "build_date", "commit_hash")
        add("healthcheck_status", "1 while the metadata service answers.", lambda: {(): not self._instance.problem})
        add("ready", "1 while ready.", lambda: {(): self._health.ready})
        add("degraded", "1 for each trouble.", lambda: {(name,): 1 for name in self._health.troubles()}, "cause")
        add("redirect_present", "1 while the rule is in the kernel.", lambda: {(): self._redirect_trouble() is None})
        add("sts_in_flight", "Calls to STS under way.", lambda: {(): self._cache.in_flight})
        add("sts_rate", "Calls a second that the node allows itself.", lambda: {(): self._cache.rate})
        add(
            "iam_cache_hits_total",
            "Credentials answered from the cache.",
            lambda: {(role,): count for role, count in self._cache.hits.items()},
            "role_arn",
        )


async def _for_ever(name: str, loop: Loop) -> None:
    await loop
    raise RuntimeError(f"the loop {name!r} has ended")


@contextmanager
def _port(flag: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartError(f"{flag}={port}: cannot listen there: {error.strerror or error}") from None


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


def _mine(settings: Settings) -> Callable[[Pod], bool]:
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


def _credentials(
    settings: Settings, upstream: Upstream, metrics: Metrics
) -> tuple[StsSource, CredentialCache, IntermediateRole | None]:
    """The way to credentials: straight, or through the role of `--assume-role-arn`."""
    make_source = partial(StsSource, region=settings.region, discover_region=partial(discover_region, upstream))
    source = make_source()
    intermediate = None
    if settings.assume_role_arn:
        first = CredentialCache(FittedDurations(source), meter=metrics)
        name = expand("{node}", {"node": settings.node_or_host})
        request = AssumeRoleRequest(RoleArn.parse(settings.assume_role_arn), name, _CHAINED)
        intermediate = IntermediateRole(first, request)
        source = make_source(signer=intermediate)
    cache = CredentialCache(FittedDurations(source), error_ttl=settings.iam_role_error_ttl, meter=metrics)
    return source, cache, intermediate
