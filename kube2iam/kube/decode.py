"""JSON of the API server, of which only what the agent reads is built: the rest is passed over, a gigabyte a second.

The only module that imports `msgspec`. A pod may be megabytes of JSON: with `json.loads` that is a long pause of the
loop, and a dozen times the memory.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

_DEEPEST = 12_000
"""How deep JSON may be nested: more than the API server lets through (10,000), which any object may use up."""
_SLICE = 50
_SLICE_BYTES = 2**20
"""Objects, and bytes of JSON, that are decoded and projected in one go: some 5 ms."""


def _object(*fields: str, **inside: Any) -> Any:
    """A type with these fields: anything that JSON has, or `inside` null or what is said. What is missing stays so."""
    plain = [(name, Any, UNSET) for name in fields]
    typed = [(name, kind | UnsetType | None, UNSET) for name, kind in inside.items()]
    return msgspec.defstruct("_Object", [*plain, *typed])


_CONTAINERS = GenericAlias(list, (_object(state=_object("terminated")),))
_READ = msgspec.json.Decoder(
    _object(
        metadata=_object(
            "namespace", "name", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "annotations"
        ),
        spec=_object("nodeName", "hostNetwork", "serviceAccountName"),
        status=_object(
            *("phase", "hostIP", "hostIPs", "podIP", "podIPs"),
            containerStatuses=_CONTAINERS,
            initContainerStatuses=_CONTAINERS,
            ephemeralContainerStatuses=_CONTAINERS,
        ),
    )
)
"""What `Pod.from_raw` and `Namespace.from_raw` read, and where a watch goes on."""
_WHOLE = msgspec.json.Decoder()


class _ListMetadata(Struct):
    resourceVersion: str  # noqa: N815 - its name in JSON
    cursor: str | None = msgspec.field(name="continue", default=None)


class _List(Struct):
    metadata: _ListMetadata
    items: list[Raw] | None = None


class _Event(Struct):
    type: str
    object: Raw


_LIST = msgspec.json.Decoder(_List)
_EVENT = msgspec.json.Decoder(_Event)


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a LIST; `cursor` asks for the next one and is empty in the last."""

    version: str
    cursor: str
    _items: Sequence[Raw]

    def __len__(self) -> int:
        return len(self._items)

    def slices(self) -> Iterator[list[object]]:
        """The objects, a few at a time; None stands for one that can't be read."""
        part: list[object] = []
        size = 0
        for item in self._items:
            part.append(_read(item))
            size += memoryview(item).nbytes
            if len(part) == _SLICE or size >= _SLICE_BYTES:
                yield part
                part, size = [], 0
        yield part


def page(body: bytes | bytearray) -> Page:
    """The page in the answer to a LIST; raises ValueError."""
    found = _decoded(_LIST, body)
    version, cursor = found.metadata.resourceVersion, found.metadata.cursor or ""
    if not version:
        raise ValueError("it has no version")
    return Page(version, cursor, found.items or [])


def event(line: bytes | bytearray) -> tuple[str, object]:
    """The type of a watch's event, and its object; raises ValueError."""
    found = _decoded(_EVENT, line)
    return found.type, _decoded(_WHOLE, found.object) if found.type == "ERROR" else _read(found.object)


def _read(raw: Raw) -> object:
    """What of an object is read; all of one that has another shape, None for one that is no JSON."""
    try:
        with _deep():
            try:
                return msgspec.to_builtins(_READ.decode(raw))
            except msgspec.ValidationError:
                return _WHOLE.decode(raw)
    except (ValueError, RecursionError):
        return None


def _decoded(decoder: "msgspec.json.Decoder[Any]", body: bytes | bytearray | Raw) -> Any:
    try:
        with _deep():
            return decoder.decode(cast("bytes", body))
    except RecursionError as error:
        raise ValueError(str(error)) from None


@contextmanager
def _deep() -> Iterator[None]:
    """Let decoders go as deep as objects may: they count against Python's own limit, also where they only pass over."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(max(usual, _DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(usual)
