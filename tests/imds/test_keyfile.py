import json
import os
from pathlib import Path

import pytest

from kube2iam.imds.keyfile import KeyFile, load_keys
from kube2iam.imds.tokens import MAX_TTL, SessionTokens

DAY = 86_400
POD = "10.1.0.5"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def minted(keys: KeyFile, clock: Clock) -> bytes:
    return SessionTokens(keys, clock).mint(POD, None, MAX_TTL)


def accepts(keys: KeyFile, clock: Clock, token: bytes) -> bool:
    return SessionTokens(keys, clock).verify(token, POD, None)


def test_file_and_directory_are_ours_alone(tmp_path: Path, clock: Clock) -> None:
    state = tmp_path / "run" / "kube2iam"
    load_keys(str(state), clock)
    (file,) = state.iterdir()
    assert state.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


def test_tokens_survive_a_restart(tmp_path: Path, clock: Clock) -> None:
    token = minted(load_keys(str(tmp_path), clock), clock)
    clock.now += 3600
    assert accepts(load_keys(str(tmp_path), clock), clock, token)


def test_two_agents_accept_each_others_tokens_through_a_week(tmp_path: Path, clock: Clock) -> None:
    first, second = load_keys(str(tmp_path), clock), load_keys(str(tmp_path), clock)
    secrets: set[bytes] = set()
    tokens: list[bytes] = []
    for step in range(7 * DAY // 300):
        clock.now += 300
        if step % 2:  # each reads every 600 s, not at the same time
            first.refresh()
        else:
            second.refresh()
        secrets |= {first.minting(clock.now), second.minting(clock.now)}
        tokens = [*tokens[-60:], minted(first, clock), minted(second, clock)]
        assert all(accepts(agent, clock, token) for agent in (first, second) for token in tokens)
    assert 6 <= len(secrets) <= 8
    assert len(json.loads(next(tmp_path.iterdir()).read_bytes())) <= 3


def test_a_token_lives_out_its_time_when_its_key_is_replaced(tmp_path: Path, clock: Clock) -> None:
    keys = load_keys(str(tmp_path), clock)
    clock.now += DAY - 1
    keys.refresh()
    token = minted(keys, clock)
    for _ in range(MAX_TTL // 600 - 1):
        clock.now += 600
        keys.refresh()
        assert accepts(keys, clock, token)


def test_an_agent_that_slept_for_a_month_has_new_keys(tmp_path: Path, clock: Clock) -> None:
    keys = load_keys(str(tmp_path), clock)
    old = keys.minting(clock.now)
    clock.now += 30 * DAY
    keys.refresh()
    clock.now += 2 * 3600
    assert keys.minting(clock.now) != old


def test_a_clock_that_jumps_back_keeps_the_agent_minting(tmp_path: Path, clock: Clock) -> None:
    keys = load_keys(str(tmp_path), clock)
    clock.now -= 30 * DAY
    assert accepts(keys, clock, minted(keys, clock))
    keys.refresh()
    assert accepts(keys, clock, minted(keys, clock))


def test_an_agent_whose_file_was_deleted_writes_its_keys_again(tmp_path: Path, clock: Clock) -> None:
    keys = load_keys(str(tmp_path), clock)
    token = minted(keys, clock)
    next(tmp_path.iterdir()).unlink()
    keys.refresh()
    assert accepts(load_keys(str(tmp_path), clock), clock, token)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"[]", b"{}", b"[1]", b'[{"since": 0}]', b'[{"since": 1e999, "secret": "00"}]', b"[" * 4000,
     b'[{"since": 1, "secret": "00"}]', b'[{"since": NaN, "secret": "' + b"00" * 32 + b'"}]', b"\xff" * 9000],
)  # fmt: skip
def test_a_file_that_cannot_be_understood_is_replaced(tmp_path: Path, clock: Clock, content: bytes) -> None:
    load_keys(str(tmp_path), clock)
    next(tmp_path.iterdir()).write_bytes(content)
    keys = load_keys(str(tmp_path), clock)
    assert accepts(load_keys(str(tmp_path), clock), clock, minted(keys, clock))


def test_a_file_that_others_may_read_is_replaced(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    known = minted(load_keys(str(tmp_path), clock), clock)
    file = next(tmp_path.iterdir())
    file.chmod(0o644)
    keys = load_keys(str(tmp_path), clock)
    assert not accepts(keys, clock, known)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [record.message for record in caplog.records] == ["token keys are replaced"]


@AS_ROOT
def test_a_file_of_another_user_is_replaced(tmp_path: Path, clock: Clock) -> None:
    known = minted(load_keys(str(tmp_path), clock), clock)
    os.chown(next(tmp_path.iterdir()), 65534, 65534)
    assert not accepts(load_keys(str(tmp_path), clock), clock, known)


def test_a_link_is_not_followed(tmp_path: Path, clock: Clock) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    load_keys(str(state), clock)
    file = next(state.iterdir())
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    load_keys(str(state), clock)
    assert elsewhere.read_bytes() == before
    assert not file.is_symlink()


@pytest.mark.parametrize(
    "case", ["writable by others", pytest.param("another user's", marks=AS_ROOT), "a link", "a file", "read-only"]
)
def test_a_directory_that_cannot_be_used_costs_one_warning(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    state = tmp_path / "state"
    match case:
        case "writable by others":
            state.mkdir()
            state.chmod(0o777)
        case "another user's":
            state.mkdir()
            os.chown(state, 65534, 65534)
        case "a link":
            state.symlink_to(tmp_path)
        case "a file":
            state.write_text("")
        case _:
            state = Path("/proc/kube2iam")
    keys = load_keys(str(state), clock)
    token = minted(keys, clock)
    clock.now += 3600
    keys.refresh()
    assert accepts(keys, clock, token)
    assert not accepts(load_keys(str(state), clock), clock, token)
    assert [record.levelname for record in caplog.records[:1]] == ["WARNING"]
    assert len(caplog.records) == 2  # one for each of the two agents


def test_secrets_are_not_shown(tmp_path: Path, clock: Clock) -> None:
    keys = load_keys(str(tmp_path), clock)
    shown = f"{keys!r} {keys._keys!r}"
    assert repr(keys.minting(clock.now)) not in shown
    assert keys.minting(clock.now).hex() not in shown


def test_nothing_else_is_left_in_the_directory(tmp_path: Path, clock: Clock) -> None:
    for _ in range(5):
        load_keys(str(tmp_path), clock)
        clock.now += 2 * DAY
    assert [path.name for path in tmp_path.iterdir()] == ["imds-token-keys"]
