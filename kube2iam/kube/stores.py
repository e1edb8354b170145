"""The index as the reflector sees it: one store for pods, one for namespaces."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from kube2iam.domain.pod import Keep, MalformedObjectError, Namespace, Pod, name_of, uid_of
from kube2iam.kube.errors import cut

T = TypeVar("T")


class Pods(Protocol):
    """Who keeps pods."""

    def replace_pods(self, pods: Iterable[Pod]) -> None:
        """These are all."""

    def upsert_pod(self, pod: Pod) -> None:
        """This one is new or changed."""

    def remove_pod(self, uid: str) -> None:
        """This one is deleted and never comes back."""

    def forget_pod(self, uid: str) -> None:
        """Nothing is known of this one for now."""


class Namespaces(Protocol):
    """Who keeps namespaces."""

    def replace_namespaces(self, namespaces: Iterable[Namespace]) -> None:
        """These are all."""

    def upsert_namespace(self, namespace: Namespace) -> None:
        """This one is new or changed."""

    def remove_namespace(self, name: str) -> None:
        """Nothing is known of this one any more."""


class PodStore:
    """Pods, identified by their uid: a late DELETED never takes the next pod of the same name."""

    def __init__(self, index: Pods, keep: Keep) -> None:
        self._index = index
        self._keep = keep
        self.replace = index.replace_pods
        self.upsert = index.upsert_pod

    def project(self, raw: object) -> Pod:
        """What the agent keeps of a pod; raises MalformedObjectError."""
        return _projected(Pod.from_raw, raw, self._keep)

    def remove(self, raw: object) -> bool:
        """Forget the pod for ever; False where the object has no uid."""
        uid = uid_of(raw)
        if uid is not None:
            self._index.remove_pod(uid)
        return uid is not None

    def forget(self, raw: object) -> bool:
        """Know nothing of the pod until it can be read again; False where the object has no uid."""
        uid = uid_of(raw)
        if uid is not None:
            self._index.forget_pod(uid)
        return uid is not None


class NamespaceStore:
    """Namespaces, identified by their name."""

    def __init__(self, index: Namespaces, keep: Keep) -> None:
        self._index = index
        self._keep = keep
        self.replace = index.replace_namespaces
        self.upsert = index.upsert_namespace

    def project(self, raw: object) -> Namespace:
        """What the agent keeps of a namespace; raises MalformedObjectError."""
        return _projected(Namespace.from_raw, raw, self._keep)

    def remove(self, raw: object) -> bool:
        """Know nothing of the namespace; False where the object has no name."""
        name = name_of(raw)
        if name is not None:
            self._index.remove_namespace(name)
        return name is not None

    forget = remove


def _projected(from_raw: Callable[[object, Keep], T], raw: object, keep: Keep) -> T:
    """Whatever is odd about an object costs that object and never the watch."""
    try:
        return from_raw(raw, keep)
    except MalformedObjectError:
        raise
    except (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError) as error:
        raise MalformedObjectError(f"the object has an unexpected shape: {cut(repr(error))}") from error
