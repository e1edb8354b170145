"""Whose keys the calls to STS are signed with: the agent's own, unless there is an intermediate role."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

_SLOW = 0.25
"""Seconds that a refresh may take before the keys from before are used."""
_RELOAD = 5.0
"""Seconds between two loads through the whole chain."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What signs a request. The names are those the SDK's signer looks for."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    account_id: str | None = None


class Signer(Protocol):
    """Where the keys come from."""

    async def keys(self) -> Keys:
        """The keys to sign with now; raises StsError of kind NODE."""

    def distrust(self, keys: Keys) -> bool:
        """AWS refuses `keys`; True if others may be had by asking once more."""


class OwnKeys:
    """The agent's own keys, loaded and refreshed in a thread of their own, one at a time.

    A refresh that is slow delays nobody while there are keys from before: AWS says when those are too old.
    """

    def __init__(self, load: Callable[[bool], Keys], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`load(anew)` blocks, and raises StsError; `anew` goes through the whole chain again."""
        self._load = load
        self._monotonic = monotonic
        self._loading: asyncio.Future[Keys] | None = None
        self._last: Keys | None = None
        self._anew = True
        self._distrusted_at = float("-inf")

    async def keys(self) -> Keys:
        """The keys at present; concurrent callers share one load."""
        if self._loading is None:
            self._loading = self._begin()
            self._loading.add_done_callback(self._loaded)
        loading = self._loading
        await asyncio.wait({loading}, timeout=_SLOW if self._last else None)
        if self._last and not loading.done():
            return self._last
        return loading.result()

    def distrust(self, keys: Keys) -> bool:
        """Load anew at the next call, every five seconds at most."""
        if keys == self._last:
            now = self._monotonic()
            if now - self._distrusted_at < _RELOAD:
                return False
            self._distrusted_at = now
            self._last = None
            self._anew = True
        return True

    def _begin(self) -> asyncio.Future[Keys]:
        """Load in a thread that nobody waits for at exit: a chain that hangs may do so for minutes."""
        loop = asyncio.get_running_loop()
        loading: asyncio.Future[Keys] = loop.create_future()
        anew = self._anew

        def load() -> None:
            try:
                tell = partial(_tell, loading, keys=self._load(anew))
            except Exception as error:  # noqa: BLE001 - it is raised where the keys are waited for
                tell = partial(_tell, loading, error=error)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell)

        threading.Thread(target=load, name="kube2iam-keys", daemon=True).start()
        return loading

    def _loaded(self, loading: asyncio.Future[Keys]) -> None:
        self._loading = None
        if not loading.cancelled() and loading.exception() is None:
            self._last = loading.result()
            self._anew = False


def _tell(loading: asyncio.Future[Keys], *, keys: Keys | None = None, error: Exception | None = None) -> None:
    if loading.done():
        return
    if keys is not None:
        loading.set_result(keys)
    elif error is not None:
        loading.set_exception(error)
