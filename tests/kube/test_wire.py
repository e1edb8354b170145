"""What comes over the wire may be long, and may come in pieces of any size."""

import asyncio
import json
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from kube2iam.kube import decode
from kube2iam.kube.wire import RoundFailedError, _event, _lines
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


# Pages of a list


def asked(server: FakeApiServer) -> list[tuple[str | None, str | None]]:
    """What each LIST asked for: the limit and the cursor."""
    return [(query.get("limit"), query.get("continue")) for query in server.lists_asked()]


@virtual_time
async def test_a_list_that_is_too_long_is_asked_for_in_smaller_pieces() -> None:
    first, second, third = (noted(name, 6 * MIB) for name in "abc")
    all_ = listing(first, second, third)
    async with FakeApiServer() as server:
        server.lists(
            *(all_, all_, all_, listing(first, cursor="b"), listing(second, cursor="c"), listing(third)),
            listing(pod("small")),
        )
        server.watches(stream(error(410)), stream())
        async with following(server.url) as here:
            await here.until("a", "b", "c")
            await here.until("small")
            assert set(here.counted.failures) == {"http-410"}
    pieces = [("500", None), ("62", None), ("7", None), ("1", None), ("1", "b"), ("1", "c")]
    assert asked(server)[:7] == [*pieces, ("1", None)]


@virtual_time
async def test_pieces_grow_again_as_what_is_in_them_gets_smaller() -> None:
    large = [noted(f"large{number}", 2 * MIB) for number in range(9)]
    small = [pod(f"small{number}") for number in range(3)]
    async with FakeApiServer() as server:
        server.lists(
            *(listing(*large), listing(*large), listing(*large[:7], cursor="x"), listing(*large[7:], cursor="y")),
            *(listing(*small[:2], cursor="z"), listing(*small[2:])),
        )
        server.watches(stream())
        async with following(server.url) as here:
            await here.until(*(raw["metadata"]["name"] for raw in [*large, *small]))
    assert asked(server) == [("500", None), ("62", None), ("7", None), ("3", "x"), ("3", "y"), ("500", "z")]


@virtual_time
async def test_what_is_at_hand_and_too_long_is_listed_in_pieces() -> None:
    first, second = noted("a", 9 * MIB, version="9"), noted("b", 9 * MIB, version="9")
    async with FakeApiServer() as server:
        server.lists(
            listing(pod("old"), version="7"),
            *(listing(first, second, version="9"), listing(first, cursor="x", version="9"), listing(second)),
        )
        server.watches(stream(error(410)), stream())
        async with following(server.url) as here:
            await here.until("a", "b")
            assert set(here.counted.failures) == {"http-410"}
    assert asked(server) == [("500", None), (None, None), ("500", None), ("1", "x")]


@virtual_time
async def test_a_single_object_is_read_however_long_it_is() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(noted("a", 17 * MIB)))
        server.watches(stream())
        async with following(server.url) as here:
            await here.until("a")
    assert [limit for limit, _ in asked(server)] == ["500", "62", "7", "1"]


def test_what_is_not_read_of_a_pod_is_not_built() -> None:
    raw = pod("a", spec={"nodeName": "n1", "containers": [{"envFrom": [{"configMapRef": {"name": "x"}}] * 95_000}]})
    body = json.dumps({"metadata": {"resourceVersion": "1"}, "items": [raw] * 2}).encode()
    tracemalloc.start()
    try:
        parts = list(decode.page(body).slices())
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert parts == [[raw | {"spec": {"nodeName": "n1"}}], [raw | {"spec": {"nodeName": "n1"}}], []]


def test_objects_are_decoded_a_few_at_a_time() -> None:
    many = [pod("small")] * 120 + [noted("large", MIB // 4)] * 8
    body = json.dumps({"metadata": {"resourceVersion": "1"}, "items": many}).encode()
    assert [len(part) for part in decode.page(body).slices()] == [50, 50, 24, 4, 0]


# What is said of it is short


LONG = b'"\xff' + b"x" * MIB


@pytest.mark.parametrize("body", [LONG, b'{"metadata": {"resourceVersion": "' + LONG + b'"}}'])
def test_a_body_that_cannot_be_read_is_not_repeated(body: bytes) -> None:
    for read, kind in ((decode.page, ValueError), (_event, RoundFailedError)):
        with pytest.raises(kind) as raised:
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


@pytest.mark.parametrize("depth", [1500, 9900])
def test_what_is_nested_as_deep_as_the_api_server_allows_is_read(depth: int) -> None:
    """Whoever may create one object must not stop the listing of all; the rest of it is read as always."""
    fields = '{"a":' * depth + "1" + "}" * depth
    deep = f'{{"metadata": {{"name": "deep", "managedFields": [{{"fieldsV1": {fields}}}]}}, "spec": {fields}}}'
    body = f'{{"metadata": {{"resourceVersion": "7"}}, "items": [{{"metadata": {{"name": "a"}}}}, {deep}]}}'
    limit = sys.getrecursionlimit()
    ((first, second),) = decode.page(body.encode()).slices()
    assert first == {"metadata": {"name": "a"}}
    assert second == {"metadata": {"name": "deep"}, "spec": {}}
    assert decode.event(f'{{"type": "ADDED", "object": {deep}}}'.encode()) == ("ADDED", second)
    assert sys.getrecursionlimit() == limit


def test_what_is_nested_deeper_still_costs_itself_only() -> None:
    deep = "[" * 50_000 + "]" * 50_000
    with pytest.raises(ValueError, match="recursion"):
        decode.event(f'{{"type": "ADDED", "object": {deep}}}'.encode())
