"""AssumeRole through the AWS SDK, in a bounded number of threads. The agent imports it here alone, and late.

Endpoints, proxies, certificates and the chain of the agent's own credentials follow the SDK's standard settings:
https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.flags import REGION
from kube2iam.sts.answers import credentials, fault_of, fault_of_chain, host, keep_status, parameters
from kube2iam.sts.errors import TIMEOUT, Kind, StsError, fault
from kube2iam.sts.gate import CALLS, LONG, SHORT
from kube2iam.sts.hangup import Call, under_control
from kube2iam.sts.keys import Keys, OwnKeys, Provider, Signer
from kube2iam.sts.retry import until_it_works

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECT = 2.0
"""Seconds for each address of the endpoint."""
_THREADS = 2
"""Threads for each call that may be out: nobody can hang up on a name look-up, which may outlast its call."""
_KEYS_WITHIN = 0.9
"""Of the time for a call, the part in which its keys must be there."""
_METADATA = "169.254.169.254,[fd00:ec2::254]"
"""The metadata service's addresses, as NO_PROXY names them."""


class StsSource:
    """STS as a CredentialSource. Retries nothing: that is the cache's business.

    `region` as given by flag, else from AWS_REGION, the SDK's own settings, or `discover_region`; never a global
    one. Signs with the keys of the SDK's chain, or of `signer`.
    """

    def __init__(
        self,
        *,
        region: str = "",
        discover_region: Callable[[], Awaitable[str]],
        signer: Signer | None = None,
        calls: int = CALLS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._region = region
        self._discover_region = discover_region
        self._own = OwnKeys(self._find_keys)
        self._signer = signer or self._own
        self._calls = calls
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS * calls, thread_name_prefix="kube2iam-sts")
        self._signing = _Signing()
        self._session: Any = None
        self._sdk: Any = None
        self._client: Any = None
        self._no_regions: set[str] = set()
        self.trouble = "the STS client is not made yet"
        """Why `open` has not returned yet."""

    @property
    def endpoint(self) -> str:
        """The endpoint's URL by the client's settings; empty before `open`."""
        return self._client.meta.endpoint_url if self._client else ""

    async def open(self) -> None:
        """Import the SDK and make its client, in a thread; waits for a region as long as it takes."""
        await until_it_works("the STS client cannot be made yet", self._set_up, heard=self._explain)

    def _explain(self, reason: str) -> None:
        self.trouble = f"the STS client cannot be made yet: {reason}"

    async def _set_up(self) -> None:
        loop = asyncio.get_running_loop()
        known = await loop.run_in_executor(self._threads, self._import)
        named = self._named_region(os.environ.get("AWS_REGION")) or self._named_region(known)
        region = self._region or named or await self._discover_region()
        await loop.run_in_executor(self._threads, self._make_client, region)
        log.info("STS client made", extra={"sts.region": region, "sts.endpoint": host(self.endpoint)})

    def _named_region(self, name: str | None) -> str:
        """`name`, or nothing where it is no region, such as `aws-global`: the global endpoint is never asked."""
        name = (name or "").strip()
        try:
            return name and REGION.parse(name)
        except ValueError:
            if name not in self._no_regions:
                self._no_regions.add(name)
                log.warning("not used: this is no region, and STS is always asked in one", extra={"sts.region": name})
            return ""

    async def fetch(self, request: AssumeRoleRequest, patience: float) -> Credentials:
        """A new session, within `patience` seconds; raises StsError."""
        return await self._within(patience, lambda: self._assume(request))

    async def caller(self) -> str:
        """The ARN of whoever the calls are signed by; raises StsError."""
        return await self._within(LONG, lambda: self._guarded(lambda: str(self._client.get_caller_identity()["Arn"])))

    def close(self) -> None:
        """Wait for nothing that is out; keep nothing open."""
        if self._client:
            self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _within(self, seconds: float, call: Callable[[], T]) -> T:
        """`call`, signed; Timeout when it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                return await self._signed(call, seconds)
        except TimeoutError:
            raise StsError(fault(TIMEOUT, detail=host(self.endpoint))) from None

    async def _signed(self, call: Callable[[], T], seconds: float) -> T:
        """`call` in a thread, signed with the present keys; once more if AWS refuses these and there are others."""
        keys = await self._keys(seconds)
        try:
            return await self._once(call, keys)
        except StsError as error:
            if error.fault.kind is not Kind.NODE or not self._signer.distrust(keys):
                raise
        return await self._once(call, await self._keys(seconds))

    async def _once(self, call: Callable[[], T], keys: Keys) -> T:
        self._signing.keys = keys
        under_way = Call()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, under_way.run, call)
        except asyncio.CancelledError:
            under_way.hang_up()
            raise
        except StsError as error:
            if error.fault.kind is Kind.NODE:
                raise StsError(self._signer.explain(error.fault)) from error
            raise

    async def _keys(self, seconds: float) -> Keys:
        """The present keys. Not to have them in time is the node's trouble, not that of STS, which was not asked."""
        try:
            async with asyncio.timeout(_KEYS_WITHIN * seconds):
                return await self._signer.keys()
        except TimeoutError:
            if seconds <= SHORT:  # it may be asked again with more time
                raise StsError(fault(TIMEOUT, detail="no keys to sign with yet")) from None
            raise StsError(fault("CredentialRetrievalError", detail="their source does not answer")) from None

    # What follows runs in threads.

    def _import(self) -> str | None:
        """Load the SDK; returns the region that its own settings name."""
        import boto3  # noqa: PLC0415 - a third of a second, after the agent listens
        from botocore.session import Session  # noqa: PLC0415 - as above

        _ask_metadata_directly()
        self._session = Session()
        self._session.register_component("credential_provider", self._signing)
        self._session.set_config_variable("sts_regional_endpoints", "regional")
        self._sdk = boto3.Session(botocore_session=self._session)
        region: str | None = self._sdk.region_name
        return region

    def _make_client(self, region: str) -> None:
        """A client that can be hung up on; everything else comes from the SDK's settings."""
        from botocore.config import Config  # noqa: PLC0415 - as above

        config = Config(
            connect_timeout=_CONNECT,
            read_timeout=LONG,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=_THREADS * self._calls,
            tcp_keepalive=True,
            user_agent_appid="kube2iam",
        )
        client = self._sdk.client("sts", region_name=region, config=config)
        pools = client._endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001 - there is no other way to them
        for scheme, pool in pools.items():
            pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": under_control(pool.ConnectionCls)})
        client.meta.events.register("before-parse.sts", keep_status)
        self._client = client

    def _find_keys(self) -> Provider:
        """The first source of the SDK's chain that has keys; botocore renews those that end."""
        from botocore.credentials import create_credential_resolver  # noqa: PLC0415 - as above

        region = self._client.meta.region_name
        found = _own(lambda: create_credential_resolver(self._session, region_name=region).load_credentials())
        if found is None:
            raise StsError(fault("NoCredentialsError"))

        def present() -> Keys:
            frozen = _own(found.get_frozen_credentials)
            return Keys(frozen.access_key, frozen.secret_key, frozen.token)

        return present

    def _assume(self, request: AssumeRoleRequest) -> Credentials:
        asked = self._clock()
        answer = self._guarded(lambda: self._client.assume_role(**parameters(request)))
        try:
            return credentials(answer, asked)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StsError(fault("MalformedResponse", detail=host(self.endpoint))) from error

    def _guarded(self, call: Callable[[], T]) -> T:
        """`call`, with whatever the SDK raises turned into an StsError."""
        try:
            return call()
        except Exception as error:
            raise StsError(fault_of(error, host(self.endpoint))) from error


class _Signing:
    """Credentials as the SDK's clients hold them, and the provider that yields them."""

    method = "kube2iam"
    keys: Keys | None = None

    def load_credentials(self) -> "_Signing":
        return self

    def get_frozen_credentials(self) -> Keys | None:
        return self.keys

    def get_deferred_property(self, name: str) -> Callable[[], Any]:
        return lambda: getattr(self.keys, name, None)


def _own(load: Callable[[], Any]) -> Any:
    """`load`, with whatever the SDK raises turned into an StsError about the agent's own credentials."""
    try:
        return load()
    except Exception as error:
        raise StsError(fault_of_chain(error)) from error


def _ask_metadata_directly() -> None:
    """Keep the SDK's questions for the node's own credentials from proxies, which would answer with their identity."""
    name = "no_proxy" if "no_proxy" in os.environ else "NO_PROXY"
    others = os.environ.get(name, "")
    if others != "*" and _METADATA not in others:
        os.environ[name] = f"{others},{_METADATA}" if others else _METADATA
