"""The ways to make the kernel redirect, by name. A new one is a module and a row in `BACKENDS`."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from kube2iam.redirect import legacy
from kube2iam.redirect.legacy import LegacyBackend
from kube2iam.redirect.nft import NftBackend
from kube2iam.redirect.none import NoneBackend
from kube2iam.redirect.rule import MissingToolError, RedirectError, RedirectRule, Status

log = logging.getLogger(__name__)

AUTO = "auto"


class RedirectBackend(Protocol):
    """One way to make the kernel redirect. Touches only what is its own. Every call may raise RedirectError."""

    @property
    def name(self) -> str:
        """As `--redirect-backend` has it."""

    def require(self) -> None:
        """Raise MissingToolError, which says what to install, if this backend cannot work here."""

    async def ensure(self, rule: RedirectRule) -> str:
        """Make the kernel do `rule`, and nothing older of ours; returns what had to be mended, empty if nothing."""

    async def remove(self) -> bool:
        """Take away all that is ours, whatever rule it was for; returns whether there was anything."""

    async def status(self) -> Status:
        """What is in the kernel now, and who else redirects."""


BACKENDS: Mapping[str, Callable[[], RedirectBackend]] = {
    "nft": NftBackend,
    "legacy": LegacyBackend,
    "none": NoneBackend,
}


async def choose(name: str) -> RedirectBackend:
    """The backend that `--redirect-backend` names, ready to work; raises MissingToolError if it cannot.

    `auto` follows the node: iptables (legacy) where the cluster network keeps its own rules there, so that one command
    shows all rules, else nftables. Where only one of the two is installed it is that one; each wins over the other's
    rules.
    """
    if name != AUTO:
        return _ready(name)
    first, second = ("legacy", "nft") if await asyncio.to_thread(_legacy_in_use) else ("nft", "legacy")
    try:
        return _ready(first)
    except MissingToolError as error:
        try:
            backend = _ready(second)
        except MissingToolError:
            raise error from None
        log.info("redirect backend falls back", extra=_fields(second, error=str(error)))
        return backend


def others(backend: RedirectBackend) -> Sequence[RedirectBackend]:
    """The backends whose leftovers would compete with `backend`; none where the kernel is left alone."""
    if backend.name == NoneBackend.name:
        return ()
    return [make() for name, make in BACKENDS.items() if name not in {backend.name, NoneBackend.name}]


async def clear(leftovers: Iterable[RedirectBackend]) -> None:
    """Remove what other backends of ours left, as far as they can be asked. Raises nothing."""
    for backend in leftovers:
        try:
            removed = await backend.remove()
        except RedirectError as error:
            log.debug("another backend's redirect was not looked for", extra=_fields(backend.name, error=str(error)))
        else:
            if removed:
                log.info("another backend's redirect was removed", extra=_fields(backend.name))


def _ready(name: str) -> RedirectBackend:
    backend = BACKENDS[name]()
    backend.require()
    return backend


def _fields(name: str, **more: str) -> dict[str, str]:
    return {"redirect.backend": name, **more}


def _legacy_in_use() -> bool:
    try:
        return legacy.in_use()
    except RedirectError as error:
        log.info("iptables (legacy) was not looked at", extra={"error": str(error)})
        return False
