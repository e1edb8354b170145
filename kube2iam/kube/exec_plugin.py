"""Credential plug-ins of a kubeconfig (`aws eks get-token` and its kind), run as kubectl runs them.

Protocol: https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins
"""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from kube2iam.kube.errors import ClusterUnavailableError

_TIMEOUT = 30.0
"""Seconds that a plug-in may take."""

_CLUSTER_INFO = (
    "server",
    "tls-server-name",
    "insecure-skip-tls-verify",
    "certificate-authority-data",
    "proxy-url",
    "disable-compression",
)


@dataclass(frozen=True, slots=True)
class ExecToken:
    """A bearer token and when it ends (seconds since the epoch; None: it says nothing of that)."""

    value: str = field(repr=False)
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that prints an ExecCredential with a token."""

    command: str
    args: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    api_version: str
    hint: str = ""
    """What to install when the program is missing (`installHint`)."""
    cluster: Mapping[str, Any] | None = None
    """What the plug-in is told of the cluster (`provideClusterInfo`)."""

    @classmethod
    def from_raw(cls, raw: object, *, folder: Path, cluster: Mapping[str, Any]) -> Self:
        """The plug-in in a user's `exec`, beside a file in `folder`; raises ValueError with what is wrong."""
        if not isinstance(raw, dict):
            raise ValueError("is not a mapping")  # noqa: TRY004 - a wrong text, not a wrong call
        command, api_version = raw.get("command"), raw.get("apiVersion")
        if not isinstance(command, str) or not command:
            raise ValueError("has no command")
        if not isinstance(api_version, str) or not api_version.startswith("client.authentication.k8s.io/"):
            raise ValueError("apiVersion is not client.authentication.k8s.io/v1 or v1beta1")
        if raw.get("interactiveMode") == "Always":
            raise ValueError("interactiveMode is Always, and an agent has no terminal")
        return cls(
            command=str(folder / command) if "/" in command else command,
            args=tuple(str(argument) for argument in _list(raw, "args")),
            env=dict(_variable(item) for item in _list(raw, "env")),
            api_version=api_version,
            hint=str(raw.get("installHint") or "").strip(),
            cluster=_told(cluster) if raw.get("provideClusterInfo") is True else None,
        )

    async def run(self) -> ExecToken:
        """Run the program once; raises ClusterUnavailableError with what it said."""
        try:
            process = await asyncio.create_subprocess_exec(
                self.command,
                *self.args,
                env={**os.environ, **self.env, "KUBERNETES_EXEC_INFO": self._info()},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            hint = f"; {self.hint}" if self.hint else ""
            raise self._error(f"can't be run: {error.strerror}{hint}") from None
        try:
            async with asyncio.timeout(_TIMEOUT):
                output, complaint = await process.communicate()
        except TimeoutError:
            raise self._error(f"did not end within {_TIMEOUT:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2][:200]
            raise self._error(f"ended with status {process.returncode}: {last}")
        return self._token(output)

    def _info(self) -> str:
        spec: dict[str, Any] = {"interactive": False}
        if self.cluster is not None:
            spec["cluster"] = self.cluster
        return json.dumps({"kind": "ExecCredential", "apiVersion": self.api_version, "spec": spec})

    def _token(self, output: bytes) -> ExecToken:
        try:
            answer = json.loads(output)
            said, status = answer["apiVersion"], answer["status"]
            token, expires = status.get("token"), status.get("expirationTimestamp")
            end = datetime.fromisoformat(expires).timestamp() if expires else None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._error("printed no ExecCredential") from None
        if said != self.api_version:
            raise self._error(f"printed apiVersion {said}, and the kubeconfig says {self.api_version}")
        if not isinstance(token, str) or not token:
            raise self._error("returned no token (client certificates from plug-ins are not supported)")
        return ExecToken(token.strip(), end)

    def _error(self, text: str) -> ClusterUnavailableError:
        return ClusterUnavailableError(f"the kubeconfig's exec plug-in {self.command!r} {text}")


def _list(raw: Mapping[str, Any], name: str) -> list[Any]:
    value = raw.get(name) or []
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")  # noqa: TRY004 - as above
    return value


def _variable(item: object) -> tuple[str, str]:
    if not isinstance(item, dict) or "name" not in item or "value" not in item:
        raise ValueError("env is not a list of name and value")
    return str(item["name"]), str(item["value"])


def _told(cluster: Mapping[str, Any]) -> Mapping[str, Any]:
    """ExecCredential's `spec.cluster`: fields of the kubeconfig's cluster, and its extension as `config`."""
    told = {name: cluster[name] for name in _CLUSTER_INFO if name in cluster}
    for extension in _list(cluster, "extensions"):
        if isinstance(extension, dict) and extension.get("name") == "client.authentication.k8s.io/exec":
            told["config"] = extension.get("extension")
    return told
