"""The way to the API server: where it is, how to be known there, and one method to ask it.

The only module that imports `kubernetes`, and only when a connection is made: its import costs half a second and 20 MB.
It takes that package's loading of configurations and its `ApiClient`, and none of its models, typed APIs and watches:
those cost a hundred megabytes. Answers are aiohttp's own responses, their status unchecked.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import aiohttp

from kube2iam import __version__
from kube2iam.kube.bearer import FileTokens, PluginTokens, TokenSource
from kube2iam.kube.errors import ClusterConfigError, ClusterUnavailableError
from kube2iam.kube.kubeconfig import read_kubeconfig

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient
    from kubernetes.aio.client.configuration import Configuration

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts a pod's token and the cluster's certificate authority."""

_HOST = "KUBERNETES_SERVICE_HOST"
_BEARER = "BearerToken"


class ClusterApi:
    """Requests to the API server. Knows how to authenticate, and nothing of what is asked."""

    def __init__(self, client: "ApiClient", tokens: TokenSource | None = None) -> None:
        self._client = client
        self._tokens = tokens

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str = "",
        api_server: str = "",
        api_token: str = "",
        insecure: bool = False,
        environ: Mapping[str, str] = os.environ,
        service_account: Path = SERVICE_ACCOUNT,
    ) -> Self:
        """The API of a kubeconfig's current context, of `api_server`, or of the cluster around this pod, in that order.

        Asks nothing yet: the server may be away. Raises ClusterConfigError where the settings can't be used.
        `insecure` accepts any certificate of the server, except inside a cluster, which gives every pod its authority.
        """
        await asyncio.to_thread(_kubernetes)  # the loop turns meanwhile
        tokens: TokenSource | None = None
        if kubeconfig:
            said = f"--kubeconfig={kubeconfig}"
            configuration, tokens = await _from_kubeconfig(kubeconfig, insecure=insecure)
        elif api_server:
            said = f"--api-server={api_server}"
            configuration = _plain(api_server, api_token, insecure=insecure)
        else:
            said = str(service_account)
            configuration, tokens = _in_cluster(environ, service_account), FileTokens(service_account / "token")
        if tokens:
            _authenticate(configuration, tokens)
        return cls(_client(configuration, said), tokens)

    @staticmethod
    def check(
        *,
        kubeconfig: str = "",
        api_server: str = "",
        environ: Mapping[str, str] = os.environ,
        service_account: Path = SERVICE_ACCOUNT,
    ) -> None:
        """Raise ClusterConfigError for what `connect` can't use, as far as that can be told at once."""
        if kubeconfig:
            read_kubeconfig(kubeconfig)
        elif api_server:
            _check_server(api_server)
        elif not environ.get(_HOST):
            raise _no_service_account(f"{_HOST} is not set")
        elif not (service_account / "token").is_file():
            raise _no_service_account(f"there is no {service_account / 'token'}")

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        timeout: float = 30.0,  # noqa: ASYNC109 - handed to aiohttp, which counts the reading of the body too
        silence: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Ask, and return the response when its head is there, whatever its status. The caller closes it.

        `timeout` and `silence` are seconds: for everything, and between two pieces of the answer.
        Raises ClusterUnavailableError; reading the body may raise aiohttp.ClientError or TimeoutError.
        """
        headers = {"Accept": "application/json", "Content-Type": content_type}
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, 10.0), sock_read=silence)
        try:
            request = await self._client.param_serialize(
                method, path, query_params=list(query), header_params=headers, body=body, auth_settings=[_BEARER]
            )
            answer = await self._client.call_api(*request, _request_timeout=limits)
        except TimeoutError:
            raise ClusterUnavailableError(f"no answer from {self.server} in time") from None
        except aiohttp.ClientConnectorError as error:  # whose own text speaks of TLS also where there is none
            raise ClusterUnavailableError(f"cannot connect to {self.server}: {error.strerror or error}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ClusterUnavailableError(str(error) or type(error).__name__) from error
        response: aiohttp.ClientResponse = answer.response
        if response.status == 401 and self._tokens:
            self._tokens.forget()
        return response

    @property
    def server(self) -> str:
        """The API server's address, for people."""
        return str(self._client.configuration.host)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.close()  # type: ignore[no-untyped-call]
        await self._client.configuration.client_session_kwargs["connector"].close()


def _kubernetes() -> ModuleType:
    """The package, imported when a connection is made: half a second that `--help` need not spend."""
    import kubernetes.aio.config  # noqa: PLC0415

    return kubernetes.aio


def _configuration() -> "Configuration":
    configuration: Configuration = _kubernetes().client.Configuration()
    # Python 3.13 began to refuse authorities without a key identifier, which many clusters have.
    configuration.disable_strict_ssl_verification = True
    return configuration


async def _from_kubeconfig(path: str, *, insecure: bool) -> tuple["Configuration", TokenSource | None]:
    context = read_kubeconfig(path)
    configuration = _configuration()
    config = _kubernetes().config
    try:
        await config.load_kube_config_from_dict(dict(context.document), client_configuration=configuration)
    except (config.ConfigException, ValueError, TypeError, LookupError, OSError) as error:
        raise ClusterConfigError(f"--kubeconfig={path}: {error}") from None
    if insecure:
        configuration.verify_ssl = False
    if context.plugin:
        return configuration, PluginTokens(context.plugin)
    return configuration, FileTokens(context.token_file) if context.token_file else None


def _check_server(server: str) -> None:
    try:
        parts = urlsplit(server)
        usable = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ClusterConfigError(f"--api-server={server}: expected http://host[:port] or https://host[:port]")


def _plain(server: str, token: str, *, insecure: bool) -> "Configuration":
    _check_server(server)
    configuration = _configuration()
    configuration.host = server.rstrip("/")
    configuration.verify_ssl = not insecure
    if token:
        configuration.api_key[_BEARER] = f"Bearer {token}"
    return configuration


def _in_cluster(environ: Mapping[str, str], folder: Path) -> "Configuration":
    """Where the environment and the kubelet's files say that this pod's API server is.

    https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/#directly-accessing-the-rest-api
    """
    configuration = _configuration()
    config = _kubernetes().config
    loader = config.incluster_config.InClusterConfigLoader(
        str(folder / "token"), str(folder / "ca.crt"), try_refresh_token=False, environ=environ
    )
    try:
        loader.load_and_set(configuration)
    except (config.ConfigException, OSError) as error:
        raise _no_service_account(str(error)) from None
    return configuration


def _no_service_account(why: str) -> ClusterConfigError:
    return ClusterConfigError(
        f"this is no pod with a service account ({why}); outside a cluster give --kubeconfig or --api-server"
    )


def _authenticate(configuration: "Configuration", tokens: TokenSource) -> None:
    """Have every request ask `tokens`: the package calls this hook before each."""

    async def renew(configuration: "Configuration") -> None:
        configuration.api_key[_BEARER] = f"Bearer {await tokens.token()}"

    configuration.api_key[_BEARER] = ""  # without a key the hook is not called
    configuration.refresh_api_key_hook = renew  # type: ignore[assignment]


def _client(configuration: "Configuration", said: str) -> "ApiClient":
    try:
        client: ApiClient = _kubernetes().client.ApiClient(configuration)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ClusterConfigError(f"{said}: its certificates can't be loaded: {error}") from None
    client.user_agent = f"kube2iam/{__version__}"
    connector = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context, socket_factory=_socket)
    configuration.client_session_kwargs = {"connector": connector}
    return client


def _socket(address: tuple[int, int, int, str, object]) -> socket.socket:
    """A socket that notices within a minute that the other machine is gone: a quiet watch would not."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
