"""The cast of the demo: five pods, their namespaces, and the roles they name."""

from collections.abc import Mapping
from dataclasses import dataclass

from kube2iam.demo.aws import ACCOUNT, Role
from kube2iam.demo.metadata import INSTANCE, NODE_ROLE, NODE_ROLE_ARN
from kube2iam.demo.network import NODE as NODE_ADDRESS
from kube2iam.demo.objects import Raw

PARTNER_ACCOUNT = "210987654321"
NODE_NAME = "demo-node-1"
ROLE_KEY = "iam.amazonaws.com/role"
ALLOWED_KEY = "iam.amazonaws.com/allowed-roles"


@dataclass(frozen=True, slots=True)
class PodSpec:
    """A pod, and what it ought to get: a role's session, or a refusal with this short reason."""

    namespace: str
    name: str
    annotation: str | None
    identity: str = ""
    """Account and role of the session that it should get: `123456789012:assumed-role/reports`."""
    bucket: str = ""
    refusal: str = ""

    @property
    def full_name(self) -> str:
        """Namespace and name."""
        return f"{self.namespace}/{self.name}"

    def manifest(self) -> Raw:
        """The object as the scheduler leaves it: on a node, without an address yet."""
        metadata: Raw = {"name": self.name, "annotations": {ROLE_KEY: self.annotation} if self.annotation else {}}
        spec = {"nodeName": NODE_NAME, "serviceAccountName": "default", "containers": [{"name": "app"}]}
        return {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}


def running(address: str) -> Raw:
    """The status that a kubelet reports once a pod has its address."""
    return {"status": {"phase": "Running", "hostIP": NODE_ADDRESS, "podIP": address, "podIPs": [{"ip": address}]}}


PODS = (
    PodSpec("shop", "reports", "reports", identity=f"{ACCOUNT}:assumed-role/reports", bucket="demo-reports"),
    PodSpec(
        "shop",
        "partner",
        f"arn:aws:iam::{PARTNER_ACCOUNT}:role/partner",
        identity=f"{PARTNER_ACCOUNT}:assumed-role/partner",
        bucket="demo-partner",
    ),
    PodSpec("shop", "plain", None, refusal="no-role"),
    PodSpec("guest", "curious", "payroll", refusal="namespace-denied"),
    PodSpec("shop", "typo", "arn:aws:iam:123567989012:role/nginx-role", refusal="role-malformed"),
)

NAMESPACES: Mapping[str, str] = {
    "shop": f'["reports", "nginx-*", "arn:aws:iam::{PARTNER_ACCOUNT}:role/partner"]',
    "guest": '["guest-*"]',
}
"""Name to the roles that its pods may have."""

NODE_SESSION = f"arn:aws:sts::{ACCOUNT}:assumed-role/{NODE_ROLE}/{INSTANCE}"
"""The node's own session; moto compares a trusted principal with it, AWS with the role too."""


def _pod_role(account: str, name: str, bucket: str) -> Role:
    return Role(
        f"arn:aws:iam::{account}:role/{name}",
        allow={"s3:GetObject": [f"arn:aws:s3:::{bucket}/*"], "s3:PutObject": [f"arn:aws:s3:::{bucket}/*"]},
        trust={"AWS": [NODE_ROLE_ARN, NODE_SESSION]},
    )


POD_ROLES = (
    _pod_role(ACCOUNT, "reports", "demo-reports"),
    _pod_role(ACCOUNT, "payroll", "demo-payroll"),
    _pod_role(PARTNER_ACCOUNT, "partner", "demo-partner"),
)
BUCKETS = {"demo-reports": ACCOUNT, "demo-payroll": ACCOUNT, "demo-partner": PARTNER_ACCOUNT}

NODE_ITSELF = Role(
    NODE_ROLE_ARN,
    allow={"sts:AssumeRole": [role.arn for role in POD_ROLES]},
    trust={"Service": ["ec2.amazonaws.com"]},
)
