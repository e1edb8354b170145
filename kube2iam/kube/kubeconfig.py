"""A kubeconfig file, read and checked: whatever is wrong with it is said with the file's name and how to mend it.

The file is cut down to its current context before the `kubernetes` package loads it. What that package leaves undone is
taken out and done here: names relative to the file, exec plug-ins, token files that change.
Format: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from kube2iam.kube.errors import ClusterConfigError
from kube2iam.kube.exec_plugin import ExecPlugin

_CLUSTER_FILES = ("certificate-authority",)
_USER_FILES = ("client-certificate", "client-key")


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """The current context of a kubeconfig."""

    document: Mapping[str, Any] = field(repr=False)
    """A kubeconfig of one context, cluster and user, without `exec` and `tokenFile`; file names are absolute."""
    plugin: ExecPlugin | None
    token_file: Path | None


def read_kubeconfig(path: str) -> KubeConfig:
    """The current context of the file at `path`; raises ClusterConfigError."""
    return _Reader(path).read()


class _Reader:
    def __init__(self, path: str) -> None:
        self._said = f"--kubeconfig={path}"
        self._path = Path(path).expanduser()

    def read(self) -> KubeConfig:
        document = self._parse()
        name = document.get("current-context")
        if not name:
            raise self._error(f"no current-context is set; {self._choose(document)}")
        context = self._named(document, "contexts", name, because="current-context")
        cluster_name, user_name = context.get("cluster"), context.get("user")
        cluster = self._named(document, "clusters", cluster_name, because=f"context {name!r}")
        user = self._named(document, "users", user_name, because=f"context {name!r}") if user_name else {}
        self._check_server(cluster, cluster_name)
        cluster = self._with_absolute_names(cluster, _CLUSTER_FILES)
        user = self._with_absolute_names(user, _USER_FILES)
        plugin, token_file = user.pop("exec", None), user.pop("tokenFile", None)
        return KubeConfig(
            document={
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "current",
                "contexts": [{"name": "current", "context": {"cluster": "current", "user": "current"}}],
                "clusters": [{"name": "current", "cluster": cluster}],
                "users": [{"name": "current", "user": user}],
            },
            plugin=None if plugin is None else self._plugin(plugin, cluster),
            token_file=self._absolute(token_file) if token_file and "token" not in user else None,
        )

    def _parse(self) -> dict[str, Any]:
        try:
            document = yaml.safe_load(self._path.read_text("utf-8"))
        except FileNotFoundError:
            raise self._error("there is no such file") from None
        except OSError as error:
            raise self._error(f"the file can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._error("the file is not text in UTF-8") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}: " if mark else ""
            what = " ".join(str(getattr(error, "problem", error)).split())
            raise self._error(f"the file is not YAML: {where}{what}") from None
        if not isinstance(document, dict) or "clusters" not in document:
            raise self._error("the file is no kubeconfig: expected a mapping with clusters, contexts and users")
        return document

    def _named(self, document: Mapping[str, Any], section: str, name: object, *, because: str) -> dict[str, Any]:
        kind = section.removesuffix("s")
        found = [item for item in self._items(document, section) if item.get("name") == name]
        if not found:
            hint = f"; {self._choose(document)}" if section == "contexts" else ""
            raise self._error(f"{because} names the {kind} {name!r}, which is not in the file{hint}")
        value = found[0].get(kind)
        if value is not None and not isinstance(value, dict):
            raise self._error(f"the {kind} {name!r} is not a mapping")
        return value or {}

    def _items(self, document: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
        items = document.get(section) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise self._error(f"{section} is not a list of mappings")
        return items

    def _choose(self, document: Mapping[str, Any]) -> str:
        names = ", ".join(str(item.get("name")) for item in self._items(document, "contexts")) or "none"
        return f"choose one with `kubectl config use-context NAME` (it has: {names})"

    def _check_server(self, cluster: Mapping[str, Any], name: object) -> None:
        server = cluster.get("server")
        if not isinstance(server, str) or not server.startswith(("https://", "http://")):
            raise self._error(f"the cluster {name!r} has no server; expected https://host[:port] or http://host[:port]")

    def _plugin(self, raw: object, cluster: Mapping[str, Any]) -> ExecPlugin:
        try:
            return ExecPlugin.from_raw(raw, folder=self._path.absolute().parent, cluster=cluster)
        except ValueError as error:
            raise self._error(f"exec: {error}") from None

    def _with_absolute_names(self, section: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
        absolute = {name: str(self._absolute(section[name])) for name in fields if section.get(name)}
        return {**section, **absolute}

    def _absolute(self, name: object) -> Path:
        path = self._path.absolute().parent / str(name)
        if not path.is_file():
            raise self._error(f"it names the file {path}, which does not exist")
        return path

    def _error(self, text: str) -> ClusterConfigError:
        return ClusterConfigError(f"{self._said}: {text}")
