import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.imds.tokens import MAX_TTL, SessionTokens, key_id, parse_ttl

SECRET = b"s" * 32
POD = "10.1.0.5"


class OneKey:
    """A ring of one secret."""

    def __init__(self, secret: bytes = SECRET) -> None:
        self.secret = secret

    def minting(self, _now: float) -> bytes:
        return self.secret

    def find(self, key_id_: bytes) -> bytes | None:
        return self.secret if key_id_ == key_id(self.secret) else None


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def tokens(clock: Clock | None = None, secret: bytes = SECRET) -> SessionTokens:
    return SessionTokens(OneKey(secret), clock or Clock())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1", 1), (b"60", 60), (b"21600", MAX_TTL), (b"00060", 60),
        (b"0", None), (b"21601", None), (b"-1", None), (b"+60", None), (b"1e3", None), (b"60.0", None), (b"", None),
        (b"0x10", None), (b" 60", None), (b"60\n", None), (b"1_0", None), (b"\xd9\xa1", None), (b"9" * 5000, None),
    ],
)  # fmt: skip
def test_ttl_is_a_plain_decimal(text: bytes, seconds: int | None) -> None:
    assert parse_ttl(text) == seconds


def test_a_token_looks_like_the_real_one() -> None:
    token = tokens().mint(POD, "uid-1", 60).decode()
    assert len(token) == 56
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


@given(st.integers(1, MAX_TTL), st.floats(0, MAX_TTL * 2))
def test_a_token_lives_as_long_as_asked_and_no_longer(ttl: int, later: float) -> None:
    clock = Clock()
    ours = tokens(clock)
    token = ours.mint(POD, None, ttl)
    clock.now += later
    if abs(later - ttl) > 0.01:
        assert ours.verify(token, POD, None) is (later < ttl)


def test_a_token_is_good_for_one_address() -> None:
    ours = tokens()
    for uid in (None, "uid-1"):
        token = ours.mint(POD, uid, 60)
        assert ours.verify(token, POD, uid)
        assert not ours.verify(token, "10.1.0.6", uid)
        assert not ours.verify(token, "10.1.0.50", uid)


def test_a_token_of_a_known_pod_is_not_its_successors() -> None:
    ours = tokens()
    token = ours.mint(POD, "uid-1", 60)
    assert ours.verify(token, POD, "uid-1")
    assert ours.verify(token, POD, None)
    assert not ours.verify(token, POD, "uid-2")


def test_a_token_minted_before_the_pod_was_known_holds_afterwards() -> None:
    ours = tokens()
    assert ours.verify(ours.mint(POD, None, 60), POD, "uid-1")


def test_a_token_survives_a_restart_and_a_second_agent() -> None:
    clock = Clock()
    assert tokens(clock).verify(tokens(clock).mint(POD, "uid-1", 60), POD, "uid-1")


def test_a_token_of_another_key_is_refused() -> None:
    assert not tokens().verify(tokens(secret=b"t" * 32).mint(POD, None, 60), POD, None)


def test_a_token_with_our_key_id_and_another_key_is_refused() -> None:
    foreign = bytearray(tokens(secret=b"t" * 32).mint(POD, None, 60))
    foreign[:2] = tokens().mint(POD, None, 60)[:2]
    assert not tokens().verify(bytes(foreign), POD, None)


@given(st.integers(0, 55), st.sampled_from(string.ascii_letters + string.digits + "-_+/=. \n"))
def test_any_changed_character_is_noticed(index: int, char: str) -> None:
    token = tokens().mint(POD, "uid-1", 60)
    changed = token[:index] + char.encode() + token[index + 1 :]
    assert tokens().verify(changed, POD, "uid-1") is (changed == token)


@given(st.binary(max_size=80) | st.text(string.printable, min_size=56, max_size=56).map(str.encode))
def test_no_other_bytes_are_a_token(token: bytes) -> None:
    assert not tokens().verify(token, POD, None)


@pytest.mark.parametrize("end", [b"=", b"\n", b" ", b"A", b"\x00"])
def test_nothing_may_follow(end: bytes) -> None:
    assert not tokens().verify(tokens().mint(POD, None, 60) + end, POD, None)
