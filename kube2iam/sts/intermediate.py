"""An intermediate role: what the agent assumes before it assumes the pods' roles (`--assume-role-arn`)."""

import asyncio
from dataclasses import replace

from kube2iam.domain.errors import Reason, RefusedError
from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import TIMEOUT, Kind, StsError, fault
from kube2iam.sts.keys import Keys

_HOLD = 4.0


class IntermediateRole:
    """Keys of a role between the node and the pods' roles (`--assume-role-arn`), refreshed ahead of its end.

    Its calls are those of a cache of its own; `run` keeps it fresh.
    """

    def __init__(self, cache: CredentialCache, request: AssumeRoleRequest) -> None:
        self._cache = cache
        self._request = request

    @property
    def ready(self) -> asyncio.Event:
        """The source of the session is open."""
        return self._cache.ready

    async def run(self) -> None:
        """Keep the role's session fresh for ever."""
        self._cache.want([self._request])
        await self._cache.run()

    async def keys(self) -> Keys:
        """The session's keys; waits for the first ones."""
        try:
            session = await self._cache.get(self._request, asyncio.get_running_loop().time() + _HOLD)
        except RefusedError as error:
            known = fault(TIMEOUT if error.denial.reason is Reason.STS_PENDING else _code(error))
            said = f"the intermediate role {self._request.arn} cannot be assumed: {known.explanation}"
            raise StsError(replace(known, kind=Kind.NODE, explanation=said)) from None
        return Keys(session.access_key_id, session.secret_access_key, session.token)

    def distrust(self, keys: Keys) -> bool:  # noqa: ARG002 - its cache refreshes by its own clock
        """There are no others before the session's next refresh."""
        return False


def _code(error: RefusedError) -> str:
    return error.denial.explanation.partition(":")[0]
