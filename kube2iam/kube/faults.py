"""What is wrong between a reflector and the API server, as people and metrics are told."""

import logging
from typing import Protocol

from kube2iam.domain.pod import MalformedObjectError, name_of, uid_of
from kube2iam.kube.errors import cut
from kube2iam.kube.wire import RoundFailedError

log = logging.getLogger(__name__)

_LEVELS = {"http-401": logging.ERROR, "http-403": logging.ERROR, "http-410": logging.INFO, "behind": logging.INFO}
"""Rights are missing until someone acts; a version forgotten or not seen yet is everyday life."""


class FaultCounters(Protocol):
    """What is counted. `resource` is `pods` or `namespaces`."""

    def cluster_failure(self, resource: str, reason: str) -> None:
        """A LIST or WATCH failed; the reasons are few."""

    def malformed_object(self, resource: str) -> None:
        """An object of the wrong shape was left out."""


class Faults:
    """The faults of one resource: each is said once, and is over as soon as the API server has done what it should."""

    def __init__(self, resource: str, counters: FaultCounters) -> None:
        self.trouble: str | None = None
        """What is wrong right now, for people."""
        self._resource = resource
        self._counters = counters
        self._said: str | None = None

    def note(self, failure: RoundFailedError) -> None:
        """Say what is wrong, and again only when it is something else."""
        self._counters.cluster_failure(self._resource, failure.reason)
        self.trouble = str(failure)
        if failure.reason == self._said:
            return
        self._said = failure.reason
        log.log(
            _LEVELS.get(failure.reason, logging.WARNING),
            "can't follow the cluster",
            extra={"resource": self._resource, "reason": failure.reason, "error": self.trouble},
        )

    def over(self) -> None:
        """It works right now. The log hears of it only once it lasts: a way that comes and goes fills no log."""
        self.trouble = None

    def settled(self) -> None:
        """It has worked for a while: the next failure is news again."""
        if self._said is not None:
            log.info("the API server answers again", extra={"resource": self._resource})
        self._said = self.trouble = None

    def leave_out(self, raw: object, error: MalformedObjectError) -> None:
        """Say which object can't be read."""
        self._counters.malformed_object(self._resource)
        log.warning(
            "object of the wrong shape left out",
            extra={
                "resource": self._resource,
                "object.name": cut(name_of(raw) or ""),
                "object.uid": cut(uid_of(raw) or ""),
                "error": cut(str(error)),
            },
        )
