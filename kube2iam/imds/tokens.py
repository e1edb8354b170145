"""IMDSv2 session tokens of our own: nothing is stored, a MAC says that we minted them.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html. A token never
proves who asks, the source address does; it shows that the client can send a PUT and read its answer.
"""

import binascii
import hmac
import re
import time
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, Protocol

MAX_TTL = 21_600
"""Seconds: six hours, as the real service."""

_LENGTH = 56
"""Characters of a token, as the real service's: key id 2 bytes, expiry 6, pod 8, MAC 26, in base64url."""
_SIGNED = 16
_NO_POD = bytes(8)
_MOST_REMEMBERED = 4096
_TTL = re.compile(rb"[0-9]{1,5}")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/", b"+/  ")


class Keys(Protocol):
    """The secrets that this node's agents share."""

    def minting(self, now: float) -> bytes:
        """The secret to sign with."""

    def find(self, key_id: bytes) -> bytes | None:
        """The secret with this id, or None if it is not one of ours or is no longer."""


def parse_ttl(text: bytes) -> int | None:
    """The seconds in `X-aws-ec2-metadata-token-ttl-seconds`: a plain decimal from 1 to 21,600, else None."""
    seconds = int(text) if _TTL.fullmatch(text) else 0
    return seconds if 1 <= seconds <= MAX_TTL else None


def key_id(secret: bytes) -> bytes:
    """Two bytes that tell which secret signed a token."""
    return blake2b(secret, digest_size=2, person=b"kube2iam key id").digest()


class _Genuine(NamedTuple):
    """A token whose MAC was found right."""

    key_id: bytes
    secret: bytes
    expiry: int
    """Milliseconds since the epoch."""
    pod: bytes


class SessionTokens:
    """Mints and checks tokens. `clock` gives seconds since the epoch."""

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock
        self._genuine: dict[tuple[bytes, str], _Genuine] = {}

    def mint(self, address: str, uid: str | None, ttl: int) -> bytes:
        """A token for `ttl` seconds, good for `address` only, and for the pod `uid` only where one is given."""
        now = self._clock()
        secret = self._keys.minting(now)
        signed = key_id(secret) + int((now + ttl) * 1000).to_bytes(6, "big") + (_digest(uid) if uid else _NO_POD)
        return binascii.b2a_base64(signed + _mac(secret, signed, address), newline=False).translate(_TO_URL)

    def verify(self, token: bytes, address: str, uid: str | None) -> bool:
        """Whether we minted `token` for this address, it has not expired, and it is no other pod's.

        `uid` is None where the address's pod is not known (yet): then the rest is checked. Takes the same time
        whatever part of a MAC is right.
        """
        genuine = self._genuine.get((token, address)) or self._read(token, address)
        if genuine is None or self._keys.find(genuine.key_id) != genuine.secret:
            return False
        ours = genuine.pod == _NO_POD or uid is None or hmac.compare_digest(genuine.pod, _digest(uid))
        return ours and self._clock() * 1000 < genuine.expiry

    def _read(self, token: bytes, address: str) -> "_Genuine | None":
        """What `token` says, if we minted it for `address`. Remembered: clients use a token for hours."""
        raw = _decode(token)
        if raw is None:
            return None
        signed, mac = raw[:_SIGNED], raw[_SIGNED:]
        secret = self._keys.find(signed[:2])
        if secret is None or not hmac.compare_digest(mac, _mac(secret, signed, address)):
            return None
        if len(self._genuine) >= _MOST_REMEMBERED:
            self._genuine.clear()
        genuine = _Genuine(signed[:2], secret, int.from_bytes(signed[2:8], "big"), signed[8:])
        self._genuine[token, address] = genuine
        return genuine


def _decode(token: bytes) -> bytes | None:
    if len(token) != _LENGTH:
        return None
    try:
        return binascii.a2b_base64(token.translate(_FROM_URL), strict_mode=True)
    except binascii.Error:
        return None


@lru_cache(maxsize=_MOST_REMEMBERED)
def _digest(uid: str) -> bytes:
    return blake2b(uid.encode(), digest_size=8, person=b"kube2iam pod uid").digest()


def _mac(secret: bytes, signed: bytes, address: str) -> bytes:
    return blake2b(signed + address.encode(), key=secret, digest_size=26, person=b"kube2iam imdsv2").digest()
