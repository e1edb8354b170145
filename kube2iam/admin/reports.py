"""Tells people what was decided about a pod: one log line and, for a no, one Kubernetes Event, each time it changes."""

import logging
from dataclasses import replace
from typing import Protocol

from kube2iam.domain.arn import RoleArn
from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Pod
from kube2iam.domain.roles import Decision, Grant

log = logging.getLogger(__name__)

_SILENT = frozenset({Reason.NO_ROLE, Reason.NOT_READY, Reason.UNKNOWN_ADDRESS, Reason.UNKNOWN_NAMESPACE})
"""Denials that are nobody's mistake: most pods of a cluster ask for no role, and what is not known yet will be."""


class Recorder(Protocol):
    """Posts Kubernetes Events; never blocks and never fails."""

    def record(self, kind: str, namespace: str, name: str, uid: str, reason: str, message: str) -> None:  # noqa: PLR0917
        """A Warning about one object."""


class Reports:
    """Hears of every decision that changes."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        """Who posts Events; there is none before the API server's address is known, and no pod either."""

    def decided(self, pod: Pod, decision: Decision) -> None:
        """A pod's decision is new or another one."""
        if isinstance(decision, Denial):
            self._denied(pod, decision)
        else:
            self._granted(pod, decision)

    def refused(self, pod: Pod, role: RoleArn, denial: Denial) -> None:
        """STS said no to what the pod was granted; the log has it already."""
        said = replace(denial, explanation=f"STS refuses {role}: {denial.explanation}")
        self._record("Pod", pod.namespace, pod.name, pod.uid, said)

    def _granted(self, pod: Pod, grant: Grant) -> None:
        log.info("role granted", extra=_fields(pod) | {"pod.iam.role": str(grant.arn), "role.source": grant.source})
        if grant.would_deny is not None:
            said = _fields(pod) | {"pod.iam.role": str(grant.arn)} | _said(grant.would_deny)
            log.warning("role would be denied", extra=said)

    def _denied(self, pod: Pod, denial: Denial) -> None:
        if denial.reason in _SILENT:
            log.debug("no role", extra=_fields(pod) | _said(denial))
            return
        log.warning("role denied", extra=_fields(pod) | _said(denial))
        self._record("Pod", pod.namespace, pod.name, pod.uid, denial)
        if denial.reason is Reason.NAMESPACE_UNREADABLE:
            self._record("Namespace", "", pod.namespace, "", denial)

    def _record(self, kind: str, namespace: str, name: str, uid: str, denial: Denial) -> None:
        if self.recorder is not None:
            reason = denial.reason.code.title().replace("-", "")  # UpperCamelCase, as Events have it
            self.recorder.record(kind, namespace, name, uid, reason, denial.explanation)


def _said(denial: Denial) -> dict[str, str]:
    return {"reason": denial.reason.code, "error": denial.explanation}


def _fields(pod: Pod) -> dict[str, str]:
    return {"pod.namespace": pod.namespace, "pod.name": pod.name, "ns.name": pod.namespace}
