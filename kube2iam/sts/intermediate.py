"""An intermediate role: what the agent assumes before it assumes the pods' roles (`--assume-role-arn`)."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from kube2iam.domain.errors import Denial, RefusedError
from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import TIMEOUT, Fault, Kind, StsError, fault
from kube2iam.sts.keys import Keys, Reloads

_HOLD = 4.0


class IntermediateRole:
    """Keys of a role between the node and the pods' roles (`--assume-role-arn`), refreshed ahead of its end.

    Its calls are those of a cache of its own; `run` keeps it fresh.
    """

    def __init__(
        self,
        cache: CredentialCache,
        request: AssumeRoleRequest,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._request = request
        self._reloads = Reloads(monotonic)
        self._given: Keys | None = None
        """The latest."""

    @property
    def ready(self) -> asyncio.Event:
        """The source of the session is open."""
        return self._cache.ready

    @property
    def trouble(self) -> Denial | None:
        """Why the role cannot be assumed, if it could not be the last time; its session may still be good."""
        found = self._cache.fault(self._request)
        return self._of_the_node(found).denial if found else None

    async def run(self) -> None:
        """Keep the role's session fresh for ever."""
        self._cache.want([self._request])
        await self._cache.run()

    async def keys(self) -> Keys:
        """The session's keys; waits for the first ones."""
        try:
            session = await self._cache.get(self._request, asyncio.get_running_loop().time() + _HOLD)
        except RefusedError:
            known = self._cache.fault(self._request) or fault(TIMEOUT)
            raise StsError(self._of_the_node(known)) from None
        self._given = Keys(session.access_key_id, session.secret_access_key, session.token)
        return self._given

    def distrust(self, keys: Keys) -> bool:
        """Assume the role anew before the next call, every five seconds at most."""
        if keys == self._given:
            if not self._reloads.begin():
                return False
            self._cache.renew(self._request)
            self._given = None
        return True

    def explain(self, refused: Fault) -> Fault:
        """It is this role's session that AWS refuses, not the agent's own keys."""
        says = (
            f"AWS does not take the session of the intermediate role {self._request.arn}: it has ended, AWS does not "
            "know it, or the node's clock is wrong"
        )
        return replace(refused, explanation=says)

    def _of_the_node(self, known: Fault) -> Fault:
        """A fault of this role's session is the node's trouble, whatever the pod's role."""
        says = f"the intermediate role {self._request.arn} cannot be assumed: {known.explanation}"
        return Fault(Kind.NODE, known.code, says)
