"""Which role, and may it: one pure decision from a pod, its namespace and the settings."""

from collections.abc import Callable
from dataclasses import dataclass, field

from kube2iam.domain.annotations import InvalidAnnotationError
from kube2iam.domain.arn import BaseArn, MalformedRoleError, RoleArn, complete
from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.restrictions import Enforcement, Restrictions, UnreadableAnnotationError
from kube2iam.domain.roles import Decision, Grant
from kube2iam.domain.session import SessionShape

NAMESPACE_DEFAULT = "iam.amazonaws.com/default-role"
"""A namespace's annotation: the role of its pods that name none (`--namespace-default-roles`)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides about roles; replaced as a whole when a base ARN or default role is discovered."""

    shape: SessionShape
    role_key: str = "iam.amazonaws.com/role"
    base: BaseArn | None = None
    default_role: str = ""
    namespace_defaults: bool = False
    restrictions: Restrictions = field(default_factory=Restrictions)
    discovering: bool = False
    """The base ARN or default role is still being discovered: nothing can be decided."""

    def keep(self, annotation: str) -> bool:
        """Whether any rule reads this annotation of a pod or namespace."""
        return annotation in {self.role_key, NAMESPACE_DEFAULT, self.restrictions.annotation} or self.shape.keep(
            annotation
        )

    def decide(self, pod: Pod, namespace: Namespace | None) -> Decision:
        """The grant of `pod`, or why it gets nothing. `namespace` is None while the watch has not shown it."""
        if self.discovering:
            return Denial(Reason.NOT_READY, "the base ARN is still being discovered from the metadata service")
        if namespace is None and self._needs_namespace(pod):
            return Denial(Reason.UNKNOWN_NAMESPACE, f"the namespace {pod.namespace} is not known yet")
        for source, rule in RULES:
            role = rule(self, pod, namespace)
            if role == "":
                return Denial(Reason.NO_ROLE, f"the {source} of {pod} is empty: it asks for no role")
            if role is not None:
                return self._grant(role, source, pod, namespace)
        return Denial(Reason.NO_ROLE, f"{pod} has no {self.role_key} annotation and there is no default role")

    def _needs_namespace(self, pod: Pod) -> bool:
        restricted = self.restrictions.enforcement is Enforcement.ON
        return self.namespace_defaults or restricted or self.shape.needs_namespace(pod)

    def _grant(self, role: str, source: str, pod: Pod, namespace: Namespace | None) -> Decision:
        try:
            arn = complete(role, self.base)
        except MalformedRoleError as error:
            return Denial(Reason.ROLE_MALFORMED, f"{source}: {error}")
        refusal = self._restricted(arn, namespace)
        if refusal is not None and self.restrictions.enforcement is Enforcement.ON:
            return refusal
        if self.shape.needs_address and not pod.ips:
            return Denial(Reason.UNKNOWN_ADDRESS, f"{pod} has no address yet, and its session is named by it")
        try:
            request = self.shape.request(arn, pod, namespace)
        except InvalidAnnotationError as error:
            return Denial(Reason.ANNOTATION_INVALID, str(error))
        return Grant(pod, request, source, would_deny=refusal)

    def _restricted(self, arn: RoleArn, namespace: Namespace | None) -> Denial | None:
        """Why the namespace does not allow `arn`, or None. The default role is exempt."""
        if self.restrictions.enforcement is Enforcement.OFF or namespace is None or arn == self._default_arn():
            return None
        key = self.restrictions.annotation
        text = namespace.annotation(key)
        try:
            if self.restrictions.allows(text, arn, self.base):
                return None
        except UnreadableAnnotationError as error:
            return Denial(
                Reason.NAMESPACE_UNREADABLE,
                f"the annotation {key} of namespace {namespace.name} allows nothing: {error}",
            )
        said = f"does not allow {arn}" if text else f"has no annotation {key}, so it allows no role"
        return Denial(Reason.NAMESPACE_DENIED, f"namespace {namespace.name} {said}")

    def _default_arn(self) -> RoleArn | None:
        try:
            return complete(self.default_role, self.base) if self.default_role else None
        except MalformedRoleError:
            return None


def _pod_annotation(policy: Policy, pod: Pod, _namespace: Namespace | None) -> str | None:
    return pod.annotation(policy.role_key)


def _namespace_default(policy: Policy, _pod: Pod, namespace: Namespace | None) -> str | None:
    if not policy.namespace_defaults or namespace is None:
        return None
    return namespace.annotation(NAMESPACE_DEFAULT)


def _default_role(policy: Policy, _pod: Pod, _namespace: Namespace | None) -> str | None:
    return policy.default_role or None


RULES: tuple[tuple[str, Callable[[Policy, Pod, Namespace | None], str | None]], ...] = (
    ("pod annotation", _pod_annotation),
    ("namespace default", _namespace_default),
    ("default role", _default_role),
)
"""Where a pod's role comes from; the first that says anything decides, an empty text is an explicit none."""
