import logging

import pytest

from kube2iam.admin.reports import Reports
from kube2iam.domain.arn import RoleArn
from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Pod
from kube2iam.domain.roles import AssumeRoleRequest, Decision, Grant

POD = Pod("shop", "cart-1", "u1", created=0)
REQUEST = AssumeRoleRequest(RoleArn.parse("arn:aws:iam::123456789012:role/app"), "n1", 3600)


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def record(self, kind: str, namespace: str, name: str, uid: str, reason: str, message: str) -> None:
        self.told.append((kind, namespace, name, uid, reason, message))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def reports(recorder: Recorder) -> Reports:
    reports = Reports()
    reports.recorder = recorder
    return reports


def test_a_denial_becomes_a_log_line_and_an_event(
    reports: Reports, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    reports.decided(POD, Denial(Reason.ROLE_MALFORMED, "did you mean x"))
    assert recorder.told == [("Pod", "shop", "cart-1", "u1", "RoleMalformed", "did you mean x")]
    (line,) = caplog.records
    assert (line.levelname, line.message, line.__dict__["error"]) == ("WARNING", "role denied", "did you mean x")


def test_a_namespaces_mistake_is_told_to_the_namespace_too(reports: Reports, recorder: Recorder) -> None:
    reports.decided(POD, Denial(Reason.NAMESPACE_UNREADABLE, "not JSON"))
    assert [told[:3] for told in recorder.told] == [("Pod", "shop", "cart-1"), ("Namespace", "", "shop")]


def test_what_sts_refuses_is_told_to_the_pod(reports: Reports, recorder: Recorder) -> None:
    reports.refused(POD, REQUEST.arn, Denial(Reason.STS_REFUSED, "AccessDenied: the trust policy"))
    ((*_pod, reason, message),) = recorder.told
    assert (reason, message) == ("StsRefused", f"STS refuses {REQUEST.arn}: AccessDenied: the trust policy")


@pytest.mark.parametrize("decision", [Denial(Reason.NO_ROLE, "none"), Grant(POD, REQUEST, "pod annotation")])
def test_what_is_nobodys_mistake_is_no_event(reports: Reports, recorder: Recorder, decision: Decision) -> None:
    reports.decided(POD, decision)
    assert recorder.told == []


def test_report_only_warns_of_what_would_break(reports: Reports, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    denial = Denial(Reason.NAMESPACE_DENIED, "namespace shop does not allow app")
    reports.decided(POD, Grant(POD, REQUEST, "pod annotation", would_deny=denial))
    assert caplog.messages == ["role would be denied"]


def test_without_a_recorder_the_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    Reports().decided(POD, Denial(Reason.ROLE_MALFORMED, "did you mean x"))
    assert caplog.messages == ["role denied"]
