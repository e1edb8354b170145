"""What the log is told of role sessions: where trouble begins and ends; a line for the node, not one for each role."""

import logging

from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.errors import Fault, Kind
from kube2iam.sts.freshness import Session

log = logging.getLogger(__name__)


class StsReports:
    """Hears of every outcome; says what is new."""

    def __init__(self) -> None:
        self._told: dict[AssumeRoleRequest, str] = {}
        """The code that the log has for a role's trouble."""
        self._short_lived: set[AssumeRoleRequest] = set()
        self._trouble: Kind | None = None
        """What the log has of trouble that is common to all roles."""

    def obtained(self, request: AssumeRoleRequest, session: Session) -> None:
        """A session is here, which also ends the trouble of the node's own credentials."""
        if self._trouble is Kind.NODE:
            self.back()
        if self._told.pop(request, None):
            log.info("role session obtained again", extra=_role(request))
        if not session.keeps_promise and request not in self._short_lived:
            self._short_lived.add(request)
            said = _role(request) | {"sts.duration": round(session.life)}
            log.warning("sessions of this role are too short for SDKs that want 25 minutes of life", extra=said)

    def failed(self, request: AssumeRoleRequest, fault: Fault, *, away: bool) -> None:
        """A session was not obtained; `away` if STS as a whole is, which has a line of its own."""
        if fault.kind is Kind.NODE:
            self.away(fault)
        elif not away and self._told.get(request) != fault.code:
            self._told[request] = fault.code
            log.warning("role session not obtained", extra=_role(request) | _fault(fault))

    def away(self, fault: Fault) -> None:
        """No session can be obtained at present, whatever the role."""
        kind = Kind.NODE if fault.kind is Kind.NODE else Kind.UNAVAILABLE
        if kind is not self._trouble:
            self._trouble = kind
            said = "the agent's own credentials cannot be used" if kind is Kind.NODE else "STS cannot be used"
            log.error(said, extra=_fault(fault))

    def back(self) -> None:
        """STS answers."""
        if self._trouble is not None:
            self._trouble = None
            log.info("STS can be used again")

    def forget(self, request: AssumeRoleRequest) -> None:
        """Nobody asks for `request` any more."""
        self._told.pop(request, None)
        self._short_lived.discard(request)


def _role(request: AssumeRoleRequest) -> dict[str, object]:
    return {"pod.iam.role": str(request.arn)}


def _fault(fault: Fault) -> dict[str, object]:
    return {"reason": fault.code, "error": fault.explanation}
