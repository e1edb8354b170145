"""Bearer tokens that change while the agent runs."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kube2iam.kube.errors import ClusterUnavailableError
from kube2iam.kube.exec_plugin import ExecPlugin, ExecToken

_REREAD = 60.0
"""Seconds after which a token file is read again; the kubelet renews a projected token long before it ends."""

_MARGIN = 10.0
"""A plug-in's token is replaced this many seconds before its end."""


class TokenSource(Protocol):
    """Where the token of the next request comes from."""

    async def token(self) -> str:
        """A token that is good now; raises ClusterUnavailableError."""

    def forget(self) -> None:
        """The API server refused the last token: get another one next time."""


class FileTokens:
    """A file that holds nothing but a token, replaced by someone else now and then."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._token = ""
        self._read_at: float | None = None

    async def token(self) -> str:
        """The file's text, at most a minute old."""
        if self._read_at is None or self._clock() - self._read_at >= _REREAD:
            try:
                token = self._path.read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ClusterUnavailableError(f"the token file {self._path} can't be read: {error}") from None
            if not token:
                raise ClusterUnavailableError(f"the token file {self._path} is empty")
            self._token, self._read_at = token, self._clock()
        return self._token

    def forget(self) -> None:
        """Read the file again next time."""
        self._read_at = None


class PluginTokens:
    """The token that an exec plug-in gave last; the plug-in runs again when it ends or is refused."""

    def __init__(self, plugin: ExecPlugin, *, clock: Callable[[], float] = time.time) -> None:
        self._plugin = plugin
        self._clock = clock
        self._held: ExecToken | None = None
        self._one_at_a_time = asyncio.Lock()

    async def token(self) -> str:
        """The plug-in's token; several who ask at once share one run."""
        async with self._one_at_a_time:
            if self._held is None or self._ends(self._held):
                self._held = await self._plugin.run()
            return self._held.value

    def _ends(self, token: ExecToken) -> bool:
        return token.expires is not None and token.expires - _MARGIN <= self._clock()

    def forget(self) -> None:
        """Run the plug-in again next time."""
        self._held = None
