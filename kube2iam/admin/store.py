"""What `--debug` shows at `/debug/store`: Go kube2iam's dump of what it knows, by its names."""

import json
from typing import Any

from kube2iam.admin.health import Page
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Pod
from kube2iam.domain.policy import Policy

_LONGEST = 4096
"""Characters of an annotation that are read; what is longer is shown as it begins."""


def store_page(index: PodIndex, rules: Policy) -> Page:
    """Annotations by address and by namespace. An address with more than one claimant is left out, as upstream."""
    owners = {address: index.find(address) for address in sorted(index.addresses())}
    pods = {address: pod for address, pod in owners.items() if isinstance(pod, Pod)}
    namespaces = {pod.namespace for pod in pods.values()}
    shown: dict[str, Any] = {
        "rolesByIP": {address: pod.annotation(rules.role_key) or "" for address, pod in pods.items()},
        "namespaceByIP": {address: pod.namespace for address, pod in pods.items()},
        "rolesByNamespace": {name: _roles(index, name, rules) for name in sorted(namespaces)},
    }
    return Page(200, "application/json", f"{json.dumps(shown, indent=2)}\n".encode())


def _roles(index: PodIndex, name: str, rules: Policy) -> Any:
    namespace = index.namespace(name)
    text = None if namespace is None else namespace.annotation(rules.restrictions.annotation)
    if text is None or len(text) > _LONGEST:
        return text and f"{text[:_LONGEST]}..."
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
