"""What operators see of an agent's parts: readiness, degradations, gauges, pages."""

import time
from collections import Counter

from kube2iam import __version__
from kube2iam._build import COMMIT, DATE
from kube2iam.admin.health import Check, Health, Page
from kube2iam.admin.metrics import CONTENT_TYPE
from kube2iam.admin.server import Pages, sparing
from kube2iam.admin.store import store_page
from kube2iam.compose import Parts, keeps_redirect
from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.roles import Grant
from kube2iam.imds.limits import PodLimits
from kube2iam.sts.entry import EntryState

SEVERAL = 2
"""Refused sessions from which on the trouble may be the node's."""


def health_of(parts: Parts) -> Health:
    """Ready: pods get right answers. Degraded: something around the agent does not work, and pods may notice later."""
    return Health(
        ready=[
            Check("listener", lambda: None if parts.listening else "the pods' port is not open yet"),
            Check("cluster", lambda: None if parts.index.synced else _cluster_trouble(parts) or "listing"),
            Check("sts", lambda: None if parts.cache.ready.is_set() else parts.sources[0].trouble),
            Check("roles", lambda: "still being discovered" if parts.resolver.policy.discovering else None),
            Check("credentials", lambda: None if parts.warmed else _cold(parts)),
            Check("redirect", lambda: _redirect_trouble(parts)),
        ],
        degraded=[
            Check("cluster", lambda: _cluster_trouble(parts)),
            Check("sts", lambda: _sts_trouble(parts, Reason.STS_UNAVAILABLE)),
            Check("node-credentials", lambda: _node_trouble(parts)),
            Check("credentials", lambda: _late_credentials(parts)),
            Check("sts-refused", lambda: _all_refused(parts)),
            Check("metadata", lambda: parts.instance.problem),
            Check("redirect", lambda: parts.coverage.problem if parts.coverage else None),
        ],
    )


def pages_of(parts: Parts, health: Health) -> Pages:
    """The pages of the operators' port, or of the pods' port where the two are one."""
    return {
        "/healthz": lambda _query: parts.instance.healthz(),
        "/livez": lambda _query: health.livez(),
        "/readyz": lambda query: health.readyz(verbose="verbose" in query),
        "/metrics": sparing(lambda: Page(200, CONTENT_TYPE, parts.metrics.render())),
    }


def debug_pages_of(parts: Parts) -> Pages:
    """What `--debug` adds, on a port that pods do not reach."""
    return {"/debug/store": lambda _query: store_page(parts.index, parts.resolver.policy)}


def add_gauges(parts: Parts, health: Health, limits: PodLimits) -> None:
    """Add the metrics that are read where they are."""
    add, cache = parts.metrics.add, parts.cache
    add("info", "Build.", lambda: {(__version__, DATE, COMMIT): 1}, "version", "build_date", "commit_hash")
    add(
        "healthcheck_status",
        "1 while the metadata service answers.",
        lambda: {(): parts.instance.problem is None},
    )
    add("ready", "1 while the agent is ready.", lambda: {(): health.ready})
    add("degraded", "1 for each thing around the agent that does not work.", lambda: _troubles(health), "cause")
    add(
        "redirect_present",
        "1 while the rule is in the kernel.",
        lambda: {(): parts.keeper.present} if parts.keeper else {},
    )
    add(
        "redirect_unmatched_pods",
        "Pods of this node that the rule does not match.",
        lambda: _unmatched(parts),
    )
    add("pods", "Pods of this node that the agent serves.", lambda: {(): len(parts.index.pods())})
    add("cluster_silence_seconds", "Seconds since the API server said anything.", lambda: _silence(parts), "resource")
    add("open_connections", "Connections of pods.", lambda: {(): limits.connections})
    add("held_requests", "Requests of pods that wait.", lambda: {(): limits.held})
    add("sts_calls_in_flight", "Calls to STS under way.", lambda: {(): cache.in_flight})
    add("sts_calls_per_second", "Calls that the node allows itself.", lambda: {(): cache.rate})
    add("credentials_missing", "Sessions in use that are not here yet.", lambda: {(): len(cache.missing())})
    add("credentials_refused", "Sessions in use that STS refuses.", lambda: {(): len(_refused(parts))})
    add("credentials_shortest_life_seconds", "Life of the session in use that ends first.", lambda: _shortest(parts))
    add("would_deny_pods", "Pods that namespace restrictions would deny.", lambda: _would_deny(parts), "namespace")


def _troubles(health: Health) -> dict[tuple[str, ...], float]:
    troubles = health.troubles()
    return {(name,): name in troubles for name in health.causes}


def _silence(parts: Parts) -> dict[tuple[str, ...], float]:
    now = time.time()
    return {(reflector.resource,): now - (reflector.last_heard or parts.begun) for reflector in parts.reflectors}


def _cluster_trouble(parts: Parts) -> str | None:
    return next((reflector.trouble for reflector in parts.reflectors if reflector.trouble), None)


def _sts_trouble(parts: Parts, reason: Reason) -> str | None:
    trouble = parts.cache.trouble
    return trouble.explanation if trouble is not None and trouble.reason is reason else None


def _node_trouble(parts: Parts) -> str | None:
    """What keeps the agent from calling STS: its own credentials, or the role between them and the pods' roles."""
    between = parts.intermediate and parts.intermediate.trouble
    return between.explanation if between else _sts_trouble(parts, Reason.NODE_CREDENTIALS)


def _redirect_trouble(parts: Parts) -> str | None:
    if not keeps_redirect(parts.settings) or (parts.keeper is not None and parts.keeper.present):
        return None
    return (parts.keeper and parts.keeper.last_error) or "the rule is not in the kernel yet"


def _unmatched(parts: Parts) -> dict[tuple[str, ...], float]:
    found = parts.coverage
    return {} if found is None or found.unmatched is None else {(): found.unmatched}


def _cold(parts: Parts) -> str:
    if not parts.index.synced:
        return "this node's pods are not known yet"
    return f"sessions still to be fetched: {len(parts.cache.missing())}"


def _late_credentials(parts: Parts) -> str | None:
    late = parts.cache.missing()
    return f"sessions that could not be fetched: {len(late)}" if late else None


def _in_use(parts: Parts) -> list[EntryState]:
    return [entry for entry in parts.cache.entries() if entry.wanted]


def _refused(parts: Parts) -> list[Denial]:
    """Why STS refuses what pods use, also while a session from before is still good."""
    denials = (entry.denial for entry in _in_use(parts))
    return [denial for denial in denials if denial is not None and denial.reason is Reason.STS_REFUSED]


def _all_refused(parts: Parts) -> str | None:
    """One role that is refused is its owner's mistake; all of them are the node's trouble."""
    refused = _refused(parts)
    if len(refused) < SEVERAL or len(refused) < len(_in_use(parts)):
        return None
    return f"STS refuses all {len(refused)} sessions of this node, for example: {refused[-1].explanation}"


def _shortest(parts: Parts) -> dict[tuple[str, ...], float]:
    long = (entry for entry in _in_use(parts) if entry.keeps_promise)  # others are always about to end
    ends = [entry.expiration for entry in long if entry.expiration is not None]
    return {(): min(ends) - time.time()} if ends else {}


def _would_deny(parts: Parts) -> dict[tuple[str, ...], float]:
    grants = (decision for decision in parts.prefetch.decisions if isinstance(decision, Grant))
    denied = [grant.pod.namespace for grant in grants if grant.would_deny]
    return {(namespace,): count for namespace, count in Counter(denied).items()}
