"""A resolver and a pod index that a test scripts: who is known, what each pod may have, and when it comes."""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace

from kube2iam.domain.arn import RoleArn
from kube2iam.domain.errors import Denial, Reason, RefusedError, refused
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.roles import AssumeRoleRequest, Credentials, Decision, Grant

ACCOUNT = "123456789012"


def grant_for(name: str, address: str, role: str = "app", namespace: str = "default") -> Grant:
    """A grant of a role to a pod that is named so."""
    pod = Pod(namespace=namespace, name=name, uid=f"uid-{name}", created=1.0, ips=(address,))
    arn = RoleArn.parse(f"arn:aws:iam::{ACCOUNT}:role/{role}")
    return Grant(
        pod=pod, request=AssumeRoleRequest(arn=arn, session_name="node", duration=3600), source="pod annotation"
    )


def credentials_for(grant: Grant, serial: int = 1) -> Credentials:
    """Credentials that tell whose they are."""
    now = int(time.time())
    return Credentials(
        access_key_id=f"ASIA{grant.arn.name.upper()}{serial}",
        secret_access_key=f"secret-of-{grant.arn.name}",
        token="t" * 700,
        expiration=now + 3600,
        issued=now,
    )


class ScriptedResolver:
    """Answers as told. Also the index of pods that the front asks for owners and namespaces."""

    def __init__(self) -> None:
        self.grants: dict[str, Grant] = {}
        self.denials: dict[str, Denial] = {}
        self.warm_by_address: dict[str, Credentials] = {}
        self.refusals: dict[str, Denial] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.changed = asyncio.Event()
        self.asked: list[str] = []
        self.waiting = 0
        self.cancelled = 0

    def add(self, address: str, name: str = "pod", *, role: str = "app", warm: bool = True) -> Grant:
        """Let a pod with a role be known at `address` from now on."""
        grant = grant_for(name, address, role)
        self.grants[address] = grant
        if warm:
            self.warm_by_address[address] = credentials_for(grant)
        self.wake()
        return grant

    def forget(self, address: str) -> None:
        """Let nobody be known at `address` any more."""
        del self.grants[address], self.warm_by_address[address]

    def give(self, address: str) -> None:
        """Let STS have answered for the pod at `address`."""
        self.warm_by_address[address] = credentials_for(self.grants[address])
        self.wake()

    def deny(self, address: str, reason: Reason) -> None:
        """Let a rule refuse the pod at `address`."""
        self.denials[address] = Denial(reason, f"scripted {reason.code}")
        self.wake()

    def wake(self) -> None:
        """Let everyone that waits look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def peek(self, address: str) -> Grant:
        if address in self.denials:
            raise RefusedError(self.denials[address])
        if address not in self.grants:
            raise refused(Reason.UNKNOWN_ADDRESS, "scripted: not known")
        return self.grants[address]

    def decide(self, pod: Pod) -> Decision:
        try:
            return self.peek(pod.ips[0])
        except RefusedError as error:
            return error.denial

    async def grant(self, address: str, deadline: float) -> Grant:
        while True:
            try:
                return self.peek(address)
            except RefusedError as error:
                if not error.denial.reason.passing or not await self._woken(deadline):
                    raise

    def is_warm(self, grant: Grant) -> bool:
        return self.warm(grant) is not None

    def warm(self, grant: Grant) -> Credentials | None:
        return self.warm_by_address.get(grant.pod.ips[0])

    async def prepare(self, grant: Grant, deadline: float) -> None:
        with suppress(RefusedError):
            await self.credentials(grant, deadline)

    async def credentials(self, grant: Grant, deadline: float) -> Credentials:
        self.asked.append(str(grant.arn))
        address = grant.pod.ips[0]
        while True:
            if address in self.refusals:
                raise RefusedError(self.refusals[address])
            if address in self.warm_by_address:
                return self.warm_by_address[address]
            if not await self._woken(deadline):
                raise refused(Reason.STS_PENDING, "scripted: STS still works")

    def find(self, address: str) -> Pod | Denial:
        denial = self.denials.get(address)
        if denial is not None and denial.reason in {Reason.NODE_ADDRESS, Reason.AMBIGUOUS_ADDRESS, Reason.NOT_SYNCED}:
            return denial
        grant = self.grants.get(address)
        if grant is not None:
            return grant.pod
        if denial is not None:
            return replace(grant_for("denied", address).pod)
        return Denial(Reason.UNKNOWN_ADDRESS, "scripted: not known")

    def namespace(self, name: str) -> Namespace | None:
        return self.namespaces.get(name)

    async def _woken(self, deadline: float) -> bool:
        self.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self.changed.wait()
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        return True
