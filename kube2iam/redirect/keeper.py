"""Keeps the redirect in the kernel: puts it there, looks again and again, mends what others changed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from kube2iam.redirect.backends import RedirectBackend, clear
from kube2iam.redirect.rule import RedirectError, RedirectRule

log = logging.getLogger(__name__)

_RETRY = 1.0
"""Seconds until the next try after one that failed, if the check period is longer."""


class Metrics(Protocol):
    """What is counted here."""

    def redirect_drift(self) -> None:
        """Someone else changed the rule, and it was put back."""


class RedirectKeeper:
    """Keeps what `rule` gives in the kernel. `rule` is asked at each check (see routes.follow); period in seconds.

    `leftovers` are the other backends, whose older rules are cleared (see backends.others).
    No failure ends it: while the kernel refuses, `present` is False, `last_error` says why, and it tries again.
    """

    def __init__(
        self,
        backend: RedirectBackend,
        rule: Callable[[], RedirectRule],
        *,
        period: float,
        metrics: Metrics,
        leftovers: Iterable[RedirectBackend] = (),
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._backend = backend
        self._rule = rule
        self._period = period
        self._metrics = metrics
        self._leftovers = tuple(leftovers)
        self._sleep = sleep
        self._kept: RedirectRule | None = None
        self.present = False
        """The last check found the rule in the kernel, or put it there."""
        self.last_error: str | None = None
        """Why the last check failed; None if it did not."""

    @property
    def backend(self) -> str:
        """The backend's name, for people."""
        return self._backend.name

    async def run(self) -> None:
        """Ensure the rule for ever, a period apart."""
        while True:
            await self._sleep(self._period if await self.ensure() else min(self._period, _RETRY))

    async def ensure(self) -> bool:
        """Check once and mend; returns whether the rule is in the kernel now. Raises nothing."""
        rule = self._rule()
        try:
            mended = await self._backend.ensure(rule)
        except RedirectError as error:
            self._failed(error)
            return False
        self._succeeded(rule, mended)
        await clear(self._leftovers)
        return True

    async def remove(self) -> None:
        """Take the rule out of the kernel (`--redirect-on-exit=remove`), once `run` is over. Raises nothing."""
        try:
            await self._backend.remove()
        except RedirectError as error:
            self._failed(error)
        else:
            self.present, self._kept = False, None
            log.info("redirect removed", extra={"redirect.backend": self.backend})

    def _succeeded(self, rule: RedirectRule, mended: str) -> None:
        fields = {"redirect.backend": self.backend, "redirect.rule": str(rule), "redirect.mended": mended}
        if mended and self._kept == rule:
            self._metrics.redirect_drift()
            log.warning("redirect was changed by someone else and put back", extra=fields)
        elif self._kept != rule:
            log.info("redirect in place", extra=fields)
        elif self.last_error:
            log.info("redirect can be checked again", extra=fields)
        self._kept, self.present, self.last_error = rule, True, None

    def _failed(self, error: RedirectError) -> None:
        if str(error) != self.last_error:
            log.error("redirect cannot be kept", extra={"redirect.backend": self.backend, "error": str(error)})
        self.present, self.last_error = False, str(error)
