"""The secrets behind the session tokens, in a file that survives a restart and that two agents may share.

A new secret is made every day. It is written an hour before it is first used, and every agent reads the file more
often than that: so each knows a secret before it meets a token signed with it. It stays until its last token expired.
"""

import asyncio
import errno
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Self

from kube2iam.imds.tokens import MAX_TTL, key_id

log = logging.getLogger(__name__)

_NAME = "imds-token-keys"
_ROTATION = 86_400.0
_LEAD = 3_600.0
_REREAD = 600.0
_MAX_SIZE = 4096
_MAX_KEYS = 8
_SECRET_BYTES = 32


class _UnfitError(Exception):
    """A key file that cannot be trusted or understood; the message says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """A secret and the time, in seconds since the epoch, from which tokens are signed with it."""

    secret: bytes = field(repr=False)
    since: float

    @classmethod
    def new(cls, since: float) -> Self:
        """A fresh random one."""
        return cls(secrets.token_bytes(_SECRET_BYTES), since)


class KeyFile:
    """This node's token secrets. Where the directory cannot be used they live in memory, after one warning."""

    def __init__(self, state_dir: str, clock: Callable[[], float] = time.time) -> None:
        self._state_dir = Path(state_dir)
        self._clock = clock
        self._warned = False
        self._keys: tuple[Key, ...] = ()
        self._by_id: dict[bytes, bytes] = {}

    def minting(self, now: float) -> bytes:
        """The newest secret that is in use; after a clock that jumped back, the oldest."""
        return next((key for key in self._keys if key.since <= now), self._keys[-1]).secret

    def find(self, key_id: bytes) -> bytes | None:
        """The secret with this id, or None."""
        return self._by_id.get(key_id)

    async def run(self) -> None:
        """Take part in the rotation for ever."""
        while True:
            await asyncio.sleep(_REREAD)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Read the file, make it or rotate it where that is due. Never raises for what is wrong with the directory."""
        now = self._clock()
        try:
            with _directory(self._state_dir) as directory:
                self._set(_share(directory, self._keys, now))
        except OSError as error:
            if not self._warned:
                log.warning(
                    "token keys are kept in memory: clients must fetch new tokens after a restart",
                    extra={"state.dir": str(self._state_dir), "error": str(error)},
                )
            self._warned = True
            self._set(_rotated(self._keys, now))

    def _set(self, keys: tuple[Key, ...]) -> None:
        self._keys = keys
        self._by_id = {key_id(key.secret): key.secret for key in keys}


def load_keys(state_dir: str, clock: Callable[[], float] = time.time) -> KeyFile:
    """The keys of `state_dir`, read or made, ready for use. Blocks for a few small file operations."""
    keys = KeyFile(state_dir, clock)
    keys.refresh()
    return keys


def _rotated(keys: tuple[Key, ...], now: float) -> tuple[Key, ...]:
    """`keys`, newest first, without those whose tokens are all expired, and with a new one where it is due."""
    known = sorted((key for key in keys if key.since <= now + 2 * _LEAD), key=lambda key: -key.since)
    if not known:
        return (Key.new(now),)
    if known[0].since <= now - _ROTATION:
        known.insert(0, Key.new(now + _LEAD))
    successors = [float("inf"), *(key.since for key in known)]
    alive = [key for key, successor in zip(known, successors, strict=False) if successor > now - MAX_TTL]
    return tuple(alive[:_MAX_KEYS])


def _share(directory: int, held: tuple[Key, ...], now: float) -> tuple[Key, ...]:
    """The keys that all agents of this directory use, written where they changed. Raises OSError."""
    try:
        stored = _read(directory)
    except FileNotFoundError:
        _write(directory, _rotated(held, now), replace=False)
        stored = _read(directory)
    except _UnfitError as error:
        log.warning("token keys are replaced", extra={"file": _NAME, "error": str(error)})
        stored = ()
    keys = _rotated(stored, now)
    if keys != stored:
        _write(directory, keys, replace=True)
    return keys


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    """The directory, opened; made if it is not there. Raises OSError, also where others may write in it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(f"{path} is not ours alone to write in")
        yield directory
    finally:
        os.close(directory)


def _read(directory: int) -> tuple[Key, ...]:
    """The stored keys. Raises FileNotFoundError, _UnfitError for a file that others may know, OSError."""
    try:
        file = os.open(_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _UnfitError("it is a link") from None
        raise
    with os.fdopen(file, "rb") as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise _UnfitError("it is not a plain file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise _UnfitError("others may read it")
        return _decode(stream.read(_MAX_SIZE))


def _write(directory: int, keys: tuple[Key, ...], *, replace: bool) -> None:
    """Put `keys` into the file, whole or not at all; without `replace` a file that is there already stays."""
    name = f".{_NAME}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(name, flags, mode=0o600, dir_fd=directory)
    try:
        with os.fdopen(file, "wb") as stream:
            os.fchmod(file, 0o600)
            stream.write(_encode(keys))
            stream.flush()
            os.fsync(file)
        if replace:
            os.rename(name, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            with suppress(FileExistsError):
                os.link(name, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _encode(keys: tuple[Key, ...]) -> bytes:
    return json.dumps([{"since": key.since, "secret": key.secret.hex()} for key in keys]).encode()


def _decode(data: bytes) -> tuple[Key, ...]:
    try:
        keys = tuple(Key(bytes.fromhex(item["secret"]), float(item["since"])) for item in json.loads(data))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise _UnfitError("it cannot be read") from None
    if not all(len(key.secret) == _SECRET_BYTES and isfinite(key.since) for key in keys):
        raise _UnfitError("it holds something that is no key")
    return keys
