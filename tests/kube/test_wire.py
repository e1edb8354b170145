"""What comes over the wire may be long, and may come in pieces of any size."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from kube2iam.kube.wire import RoundFailedError, _event, _lines, _page
from tests.fakes.kube import Answer, FakeApiServer, error, event, listing, pod, stream
from tests.fakes.virtual_time import virtual_time
from tests.kube.following import following

MIB = 2**20


def noted(name: str, size: int, **options: Any) -> dict[str, Any]:
    """A pod with an annotation of `size` bytes that no rule reads."""
    raw = pod(name, **options)
    raw["metadata"]["annotations"]["note"] = "x" * size
    return raw


@dataclass
class Content:
    pieces: Sequence[bytes]

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def answer(*pieces: bytes) -> Any:
    return SimpleNamespace(content=Content(pieces))


# Lines of a watch


@pytest.mark.parametrize(
    "pieces",
    [(b"a\nbc\n\nd",), (b"a", b"\n", b"b", b"c\n", b"\n", b"d"), (b"a\nb", b"c\n\n")],
)
async def test_lines_are_found_in_any_pieces_and_half_a_line_is_dropped(pieces: Sequence[bytes]) -> None:
    assert [bytes(line) async for line in _lines(answer(*pieces))] == [b"a", b"bc", b""]


async def test_a_line_in_many_small_pieces_costs_time_in_proportion() -> None:
    begun = time.process_time()
    lines = [line async for line in _lines(answer(*[b"x" * 10] * 800_000, b"\n"))]
    assert [len(line) for line in lines] == [8_000_000]
    assert time.process_time() - begun < 5


async def test_the_loop_turns_between_many_events_that_come_at_once() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(turn())
    most = last = 0
    async for _line in _lines(answer(b"{}\n" * 20_000)):
        most, last = (most + 1, last) if turns == last else (1, turns)
        assert most <= 20
    task.cancel()
    assert turns >= 1000


@virtual_time
async def test_a_pod_of_many_megabytes_is_followed_like_any_other() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(
            stream(event("ADDED", noted("large", 9 * MIB, version="8")), event("ADDED", pod("b", version="9")))
        )
        async with following(server.url) as here:
            await here.until("large", "b")
            assert not here.counted.failures
            assert not here.counted.malformed
    assert server.count(watch=False) == 1


@virtual_time
async def test_an_object_that_is_too_long_costs_a_list_each_time_and_no_growing_delay() -> None:
    async with FakeApiServer() as server:
        server.lists(*[listing(pod(f"p{number}"), version="7") for number in range(6)])
        server.watches(stream(event("MODIFIED", noted("long", 17 * MIB))))
        async with following(server.url) as here:
            begun = asyncio.get_running_loop().time()
            await here.until("p5")
            assert asyncio.get_running_loop().time() - begun < 40
            assert set(here.counted.failures) == {"malformed"}
            assert here.counted.malformed["pods"] >= 5


# What is said of it is short


LONG = b'"\xff' + b"x" * MIB


@pytest.mark.parametrize("body", [LONG, b'{"metadata": {"resourceVersion": "' + LONG + b'"}}'])
def test_a_body_that_cannot_be_read_is_not_repeated(body: bytes) -> None:
    for read in (_page, _event):
        with pytest.raises(RoundFailedError) as raised:
            read(body)
        assert 10 < len(str(raised.value)) < 600


@virtual_time
async def test_a_long_message_of_the_server_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(stream(error(500, "no" * MIB)))
        async with following(server.url):
            await server.until_asked(4)
    (said,) = [vars(record)["error"] for record in caplog.records if hasattr(record, "error")]
    assert said.startswith("HTTP 500: nono")
    assert len(said) < 600


@virtual_time
async def test_long_names_and_values_of_an_object_left_out_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    odd = pod("n" * MIB, uid="u" * MIB, status={"phase": {}})
    async with FakeApiServer() as server:
        server.lists(Answer(pieces=[json.dumps({"metadata": {"resourceVersion": "1"}, "items": [odd]}).encode()]))
        server.watches(stream())
        async with following(server.url):
            await server.until_asked(2)
    (record,) = [record for record in caplog.records if "left out" in record.getMessage()]
    assert max(len(str(value)) for value in vars(record).values()) < 600
