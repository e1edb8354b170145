"""Whose keys the calls to STS are signed with: the agent's own, unless there is an intermediate role."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from kube2iam.sts.errors import Fault, StsError, fault

log = logging.getLogger(__name__)

_RELOAD = 5.0
"""Seconds between two times that AWS's refusal of keys is a reason to fetch others."""
_SLOW = 0.25
"""Seconds that a load may take before the keys from before are used."""
_HUNG = 30.0
"""Seconds after which a load is given up and another one begun; twice as many for each one that hangs already."""
_THREADS = 8
"""Loads that may be out at once, hung ones too: with the doubling they last for an hour of a chain that hangs."""


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

    def explain(self, refused: Fault) -> Fault:
        """`refused`, of kind NODE, in words that say whose keys AWS refuses."""


class Reloads:
    """When AWS's refusal of keys is a reason to fetch others: every five seconds at most."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._last = float("-inf")

    def begin(self) -> bool:
        """Whether others may be fetched; that counts as done."""
        now = self._monotonic()
        if now - self._last < _RELOAD:
            return False
        self._last = now
        return True


Provider = Callable[[], Keys]
"""Yields one source's keys at present, renewed if they need to be. Blocks; raises StsError."""
_Found = tuple[Provider, Keys]


class OwnKeys:
    """The agent's own keys, loaded and renewed in threads of their own.

    A renewal that is slow or fails delays nobody and takes nothing away while there are keys from before: AWS says when
    those are too old. Only one load at a time is waited for. What one that seemed to hang brings in the end counts too,
    unless it was begun before AWS refused the keys.
    """

    def __init__(
        self,
        find: Callable[[], Provider],
        *,
        threads: int = _THREADS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`find` goes through the whole chain; it blocks, and raises StsError."""
        self._find = find
        self._threads = threads
        self._monotonic = monotonic
        self._loading: asyncio.Future[_Found] | None = None
        self._begun = 0.0
        self._out = 0
        self._serial = 0
        self._counted = 0
        self._provider: Provider | None = None
        self._last: Keys | None = None
        self._trouble: Fault | None = None
        self._reloads = Reloads(monotonic)

    async def keys(self) -> Keys:
        """The keys at present; concurrent callers share one load."""
        while True:
            loading = self._under_way()
            slow_at = self._begun + _SLOW
            await asyncio.wait({loading}, timeout=max(0.0, slow_at - self._monotonic()) if self._last else None)
            if self._last is not None:
                return self._last
            if loading.done() and not loading.cancelled() and (error := loading.exception()):
                raise error

    def distrust(self, keys: Keys) -> bool:
        """Load anew at the next call, every five seconds at most."""
        if keys == self._last:
            if not self._reloads.begin():
                return False
            self._last = None
            self._counted = self._serial
            self._give_up()
        return True

    def explain(self, refused: Fault) -> Fault:
        """As it is: the table of faults speaks of these keys."""
        return refused

    def _under_way(self) -> asyncio.Future[_Found]:
        """The load that counts, begun now if there is none or it hangs."""
        if self._loading is not None and self._is_hung():
            log.warning("the source of the agent's own credentials hangs: asked anew", extra={"sts.hung": self._out})
            self._give_up()
        if self._loading is None:
            if self._out >= self._threads:
                raise StsError(fault("CredentialRetrievalError", detail="their source does not answer"))
            self._begun = self._monotonic()
            self._loading = self._begin(self._provider)
            self._loading.add_done_callback(self._loaded)
        return self._loading

    def _is_hung(self) -> bool:
        return self._out < self._threads and self._monotonic() - self._begun >= _HUNG * 2 ** (self._out - 1)

    def _give_up(self) -> None:
        """Wait no more for what is under way, and begin with the whole chain: what hangs may hold this one's lock."""
        self._provider = None
        if self._loading is not None:
            loading, self._loading = self._loading, None
            loading.cancel()

    def _begin(self, provider: Provider | None) -> asyncio.Future[_Found]:
        """Load in a thread that nobody waits for at exit: a chain that hangs may do so for minutes."""
        loop = asyncio.get_running_loop()
        loading: asyncio.Future[_Found] = loop.create_future()
        self._serial += 1
        serial = self._serial

        def load() -> None:
            try:
                known = provider or self._find()
                tell = partial(self._tell, loading, serial, found=(known, known()))
            except Exception as error:  # noqa: BLE001 - it is raised where the keys are waited for
                tell = partial(self._tell, loading, serial, error=error)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell)

        self._out += 1
        threading.Thread(target=load, name="kube2iam-keys", daemon=True).start()
        return loading

    def _tell(
        self,
        loading: asyncio.Future[_Found],
        serial: int,
        *,
        found: _Found | None = None,
        error: Exception | None = None,
    ) -> None:
        self._out -= 1
        if found is not None and serial > self._counted:
            self._counted = serial
            self._provider, self._last = found
            self._say(None)
            waited_for = self._loading  # which is another one, if this one had been given up
            if waited_for is not None and not waited_for.done():
                waited_for.set_result(found)
        elif error is not None and not loading.done():
            loading.set_exception(error)

    def _loaded(self, loading: asyncio.Future[_Found]) -> None:
        if loading is not self._loading:  # given up
            return
        self._loading = None
        error = loading.exception()
        if error is not None:
            self._say(error)

    def _say(self, error: BaseException | None) -> None:
        """Tell the log of a change."""
        trouble = None if error is None else error.fault if isinstance(error, StsError) else fault(type(error).__name__)
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble is not None:
            said = {"reason": trouble.code, "error": trouble.explanation, "sts.kept": self._last is not None}
            log.warning("the agent's own credentials cannot be loaded or renewed", extra=said)
        else:
            log.info("the agent's own credentials are loaded again")
