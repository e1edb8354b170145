"""The agent's life: what it starts, in which order, what it waits for, and how it ends."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from kube2iam import __version__, checks
from kube2iam._build import COMMIT
from kube2iam.admin.health import announce
from kube2iam.admin.server import AdminServer, answer
from kube2iam.compose import Parts, keeps_redirect, mine
from kube2iam.domain.arn import BaseArn
from kube2iam.domain.index import EVERY
from kube2iam.imds.listen import listen
from kube2iam.imds.server import Server
from kube2iam.kube.api import ClusterApi
from kube2iam.kube.duplicates import DuplicateResolver
from kube2iam.kube.errors import ClusterConfigError
from kube2iam.kube.recorder import EventRecorder
from kube2iam.kube.reflector import Reflector
from kube2iam.kube.stores import NamespaceStore, PodStore
from kube2iam.redirect.backends import choose, others
from kube2iam.redirect.coverage import Coverage
from kube2iam.redirect.keeper import RedirectKeeper
from kube2iam.redirect.routes import follow
from kube2iam.redirect.rule import RedirectError, RedirectRule
from kube2iam.settings import Settings, SettingsError
from kube2iam.sts.discover import discover_base_arn, discover_default_role

log = logging.getLogger(__name__)

READY_AFTER = 4.5
"""Seconds after its start when a fresh agent is ready without the credentials that are still missing.

With the half second that the interpreter takes before that it makes five.
"""
LEAST_WARMING = 2.0
"""Seconds that it takes all the same to fetch them, where its pods become known late."""

Loop = Callable[[], Coroutine[Any, Any, None]]


def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; the exit status is 0, or 1 if a part failed. Raises SettingsError."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except SettingsError:
        raise
    except Exception:
        log.exception("a part of the agent has failed")
        return 1
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where it is installed: it serves twice the requests of asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Agent(Parts(settings)).run(stop)
    log.info("stopped")


class Agent:
    """Runs the parts. Owns every loop; one that ends by itself is a fault and ends the agent."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._begun = asyncio.get_running_loop().time()
        self._settings = settings = parts.settings
        self._health = checks.health_of(parts)
        self._pages = dict(checks.pages_of(parts, self._health))
        self._own_port = settings.metrics_port_or_app != settings.app_port
        self._server = Server(parts.front, settings, parts.metrics, None if self._own_port else self._shared_page)
        if self._own_port and settings.debug:
            self._pages |= checks.debug_pages_of(parts)
        checks.add_gauges(parts, self._health, self._server.limits)

    async def _check(self) -> None:
        """Raise SettingsError for what can't be used here, before anything is touched; choose the backend."""
        settings = self._settings
        try:
            ClusterApi.check(kubeconfig=settings.kubeconfig, api_server=settings.api_server)
            if keeps_redirect(settings):
                self._parts.keeper = await self._keeper()
                self._parts.coverage = self._coverage()
        except (ClusterConfigError, RedirectError) as error:
            raise SettingsError(str(error)) from None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; raises SettingsError, or an ExceptionGroup if a part fails."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._parts.upstream.aclose)
            for source in self._parts.sources:
                closing.callback(source.close)
            await self._check()
            log.info("starting", extra={"version": __version__, "commit": COMMIT})
            await self._listen(closing)
            if self._parts.keeper is not None:  # from here on pods reach the agent, or nobody
                await self._parts.keeper.ensure()
            cluster = await self._connect(closing)
            async with asyncio.TaskGroup() as group:
                loops = [group.create_task(_for_ever(name, loop)) for name, loop in self._loops(cluster, closing)]
                loops.extend(group.create_task(once()) for once in self._starters())
                await stop.wait()
                await self._drain()
                for loop in loops:
                    loop.cancel()
            if self._parts.keeper is not None and self._settings.redirect_on_exit == "remove":
                await self._parts.keeper.remove()

    async def _drain(self) -> None:
        log.info("stopping")
        self._health.stopping = True
        await self._server.drain()

    async def _listen(self, closing: AsyncExitStack) -> None:
        settings = self._settings
        if self._own_port:
            admin = AdminServer(self._pages, port=settings.metrics_port_or_app)
            with _port("--metrics-port", settings.metrics_port_or_app):
                await admin.start()
            closing.push_async_callback(admin.stop)
        with _port("--app-port", settings.app_port):
            sockets = listen(settings.app_port)
        for listener in sockets:
            closing.callback(listener.close)
        await self._server.start(sockets)
        self._parts.listening = True
        log.info("listening", extra={"port": settings.app_port, "metrics.port": settings.metrics_port_or_app})

    async def _keeper(self) -> RedirectKeeper:
        settings, parts = self._settings, self._parts
        rule = RedirectRule.of(settings.host_ip, settings.app_port, settings.host_interface)
        backend = await choose(settings.redirect_backend)
        return RedirectKeeper(
            backend,
            follow(rule, parts.index.addresses),
            period=settings.redirect_check_period,
            metrics=parts.metrics,
            leftovers=others(backend),
        )

    def _coverage(self) -> Coverage:
        index, settings = self._parts.index, self._settings
        return Coverage(
            settings.host_interface,
            lambda: (pod.ips for pod in index.pods()),
            period=settings.redirect_check_period,
        )

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
            raise SettingsError(str(error)) from None
        closing.push_async_callback(cluster.aclose)
        return cluster

    def _loops(self, cluster: ClusterApi, closing: AsyncExitStack) -> Iterator[tuple[str, Loop]]:
        """Every loop of the agent; each runs until the end."""
        parts, settings = self._parts, self._settings
        parts.reports.recorder = recorder = EventRecorder(cluster, node=settings.node_or_host, counters=parts.metrics)
        self._mirror(cluster, closing)
        for reflector in parts.reflectors:
            yield f"watch of {reflector.resource}", reflector.run
        yield "events", recorder.run
        yield "credentials", parts.cache.run
        yield "token keys", parts.keys.run
        yield "health check", parts.instance.run
        yield "readiness", partial(announce, self._health)
        if parts.intermediate is not None:
            yield "intermediate role", parts.intermediate.run
        if settings.prefetch:
            yield "prefetch", parts.prefetch.run
        if parts.keeper is not None:
            yield "redirect", parts.keeper.run
        if parts.coverage is not None:
            closing.callback(parts.index.subscribe(EVERY, parts.coverage.changed))
            yield "redirect coverage", parts.coverage.run

    def _mirror(self, cluster: ClusterApi, closing: AsyncExitStack) -> None:
        parts, settings = self._parts, self._settings
        pods = PodStore(parts.index, parts.keep)
        selector = f"spec.nodeName={settings.node}" if settings.node else ""
        mirror = partial(Reflector, cluster, counters=parts.metrics, resync=settings.cache_resync_period)
        parts.reflectors += [
            mirror(pods, resource="pods", field_selector=selector),
            mirror(NamespaceStore(parts.index, parts.keep), resource="namespaces"),
        ]
        if settings.resolve_duplicate_cache_ips:
            duplicates = DuplicateResolver(
                cluster, project=pods.project, mine=mine(settings), node=settings.node, counters=parts.metrics
            )
            closing.push_async_callback(duplicates.aclose)
            parts.resolver.tie_break = duplicates.resolve

    def _starters(self) -> Iterator[Loop]:
        """What is done once, while the loops already run."""
        if self._parts.resolver.policy.discovering:
            yield self._discover
        if self._settings.prefetch:
            yield self._warm

    async def _discover(self) -> None:
        """Learn the base ARN and the default role of `--auto-discover-…`; until then nothing is decided."""
        parts = self._parts
        await parts.cache.ready.wait()
        if parts.intermediate is not None:
            await parts.intermediate.ready.wait()
        base, default = await asyncio.gather(self._base_arn(), self._default_role())
        log.info("discovered", extra={"base.role.arn": str(base), "default.role": default})
        policy = parts.resolver.policy
        parts.resolver.policy = replace(policy, base=base, default_role=default, discovering=False)
        parts.prefetch.changed()

    async def _base_arn(self) -> BaseArn:
        parts = self._parts
        return parts.resolver.policy.base or await discover_base_arn(parts.upstream, self._own_identity)

    async def _default_role(self) -> str:
        if not self._settings.auto_discover_default_role:
            return self._settings.default_role
        return str(await discover_default_role(self._parts.upstream, self._own_identity))

    async def _own_identity(self) -> str:
        """The agent's own, not that of `--assume-role-arn`, which may be of another account."""
        return await self._parts.sources[-1].caller()

    async def _warm(self) -> None:
        """Fetch the whole node's credentials before it is ready, or say which are missing."""
        await self._parts.prefetch.primed.wait()
        age = asyncio.get_running_loop().time() - self._begun
        missing = await self._parts.cache.warm(max(READY_AFTER - age, LEAST_WARMING))
        self._parts.warmed = True
        if missing:
            roles = sorted({str(request.arn) for request in missing})
            log.warning("ready without some roles' credentials", extra={"roles": ", ".join(roles)})

    def _shared_page(self, path: str, query: str) -> tuple[int, str, bytes]:
        page = answer(self._pages, f"/{path}", query)
        return page.status, page.content_type, page.body


async def _for_ever(name: str, loop: Loop) -> None:
    await loop()
    raise RuntimeError(f"the loop {name!r} has ended")


@contextmanager
def _port(flag: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{flag}={port}: cannot listen there: {error.strerror or error}") from None
