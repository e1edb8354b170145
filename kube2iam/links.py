"""The variables that Kubernetes sets in a container for each Service of its namespace. None of them is a setting.

A Service named kube2iam-metrics makes KUBE2IAM_METRICS_PORT=tcp://10.96.0.7:8182 and more that begin like settings:
https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
"""

import re

_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://[0-9A-Fa-f.:\[\]]+:[0-9]+")
_NO_SETTING = re.compile(
    r"\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)", re.ASCII
)
_PORT = "_PORT"


def is_service_link(name: str, text: str) -> bool:
    """Whether the variable is one of these, by its name alone or, where a setting may be named so, by its text too."""
    if name.endswith(_PORT) and _ADDRESS.fullmatch(text):
        return True
    return bool(_NO_SETTING.fullmatch(name))


def service_of(name: str) -> str:
    """The Service for which there is such a variable: `kube2iam-metrics` for `KUBE2IAM_METRICS_PORT`."""
    return name.removesuffix(_PORT).lower().replace("_", "-")
