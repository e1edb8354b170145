"""From bytes to requests: what is sound, what is not, and where the limits are."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.imds.front import Head
from kube2iam.imds.protocol import RequestReader
from tests.fakes.requests import CHUNKED, GET, HOST, MALFORMED, PUT, SOUND, TOKEN


@dataclass(slots=True)
class Limits:
    longest_target: float = 100
    most_header_bytes: float = 400
    most_headers: float = 8
    longest_body: float = 32
    most_bytes: float = 532


class Received:
    def __init__(self) -> None:
        self.heads: list[Head] = []

    def received(self, head: Head) -> None:
        self.heads.append(head)


def read(*parts: bytes) -> tuple[list[Head], int]:
    """The requests in the parts, and the status for what is not sound."""
    received = Received()
    reader = RequestReader(Limits(), received)
    status = 0
    for part in parts:
        if status or not all(head.keep for head in received.heads):
            break
        status = reader.feed(part)
    if not all(head.keep for head in received.heads):
        status = 0
    reader.close()
    return received.heads, status


WITHIN = {
    "many headers": (GET + HOST + b"A: b\r\n" * 7 + b"\r\n", True),
    "longest target": (b"GET /" + b"x" * 99 + b" HTTP/1.1\r\n" + HOST + b"\r\n", True),
}
BEYOND = {
    "long body": (PUT + HOST + b"Content-Length: 33\r\n\r\n", 413),
    "long target": (b"GET /" + b"x" * 100 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "endless target": (b"GET /" + b"x" * 100_000, 414),
    "many headers": (GET + HOST + b"A: b\r\n" * 8 + b"\r\n", 431),
    "long headers": (GET + HOST + b"A: " + b"x" * 375 + b"\r\n\r\n", 431),
    "endless header": (GET + HOST + b"A: " + b"x" * 100_000, 431),
    "endless name": (GET + HOST + b"x" * 100_000, 431),
    "endless empty lines": (b"\r\n" * 1000, 400),
    "endless chunk size": (CHUNKED + b"0;" + b"x" * 100_000, 413),
}


@pytest.mark.parametrize("case", [*SOUND.values(), *WITHIN.values()], ids=[*SOUND, *WITHIN])
def test_sound(case: tuple[bytes, bool]) -> None:
    raw, keep = case
    heads, status = read(raw)
    assert status == 0
    assert [head.keep for head in heads] == [keep]


@pytest.mark.parametrize("case", [*MALFORMED.values(), *BEYOND.values()], ids=[*MALFORMED, *BEYOND])
def test_malformed(case: tuple[bytes, int]) -> None:
    raw, expected = case
    heads, status = read(raw)
    assert (heads, status) == ([], expected)


@pytest.mark.parametrize("case", [*MALFORMED.values(), *BEYOND.values()], ids=[*MALFORMED, *BEYOND])
def test_malformed_after_a_sound_one(case: tuple[bytes, int]) -> None:
    raw, expected = case
    heads, status = read(GET + HOST + b"\r\n", raw)
    assert len(heads) == 1
    assert status == expected


def test_what_a_head_says() -> None:
    raw = b"PUT //latest/api/%74oken?a HTTP/1.1\r\nhOsT:  169.254.169.254 \t\r\nX-Other: b\r\n" + TOKEN + b": t\r\n\r\n"
    (head,), status = read(raw)
    assert status == 0
    assert (head.method, head.target) == (b"PUT", b"//latest/api/%74oken?a")
    assert head.headers == {b"host": b"169.254.169.254", TOKEN.lower(): b"t"}
    assert not head.bodiless


def test_head_is_bodiless() -> None:
    (head,), _ = read(b"HEAD /x HTTP/1.1\r\n" + HOST + b"\r\n")
    assert head.bodiless


def test_one_request_in_one_piece_is_told_from_several() -> None:
    received = Received()
    reader = RequestReader(Limits(), received)
    whole = GET + HOST + b"\r\n"
    assert reader.feed(whole) == 0
    assert reader.only is received.heads[0]
    assert reader.feed(whole + whole) == 0
    assert reader.only is None
    assert reader.feed(whole + GET) == 0
    assert reader.only is not None
    assert reader.bytes > 0  # how many is not known, as the parser does not say where the first one ended
    assert reader.feed(HOST) == 0
    assert reader.only is None
    assert reader.feed(b"\r\n") == 0
    assert reader.only is not None
    assert reader.bytes == 0


STREAMS = [raw for raw, _ in SOUND.values()] + [raw for raw, _ in MALFORMED.values()]


@given(st.lists(st.sampled_from(STREAMS), min_size=1, max_size=4), st.lists(st.integers(1, 60), max_size=40))
def test_where_the_stream_is_cut_changes_nothing(streams: list[bytes], cuts: list[int]) -> None:
    raw = b"".join(streams)
    parts, at = [], 0
    for cut in cuts:
        parts.append(raw[at : at + cut])
        at += cut
    heads, status = read(*(part for part in [*parts, raw[at:]] if part))
    whole_heads, whole_status = read(raw)
    told = [(head.method, head.target, dict(head.headers), head.keep) for head in heads]
    assert told == [(head.method, head.target, dict(head.headers), head.keep) for head in whole_heads]
    assert bool(status) == bool(whole_status)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    heads, status = read(raw)
    assert status in {0, 400, 405, 413, 414, 431}
    assert all(head.method for head in heads)


@given(st.sampled_from(STREAMS), st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_any_damage_is_read_or_refused(raw: bytes, at: int, damage: bytes) -> None:
    _, status = read(raw[:at] + damage + raw[at:])
    assert status in {0, 400, 405, 413, 414, 431}
