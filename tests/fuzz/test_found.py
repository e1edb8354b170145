"""What the fuzzer found once, and a little of what it does."""

from pathlib import Path
from random import Random

from tests.fakes.pods_port import pods_port
from tests.fuzz.fuzz import fails, feed, shortened
from tests.fuzz.targets import FOUND, Target, changed, targets


async def test_what_was_found_stays_mended(tmp_path: Path) -> None:
    async with pods_port(str(tmp_path)) as port:
        for name, target in targets(port).items():
            for data in (*FOUND[name], *target.seeds):
                assert await fails(target, data) is None, (name, data)


async def test_a_few_inputs_for_each_target(tmp_path: Path) -> None:
    async with pods_port(str(tmp_path)) as port:
        for name, target in targets(port).items():
            _, found = await feed(target, Random(7), list(target.seeds), 0.3)
            assert found is None, (name, found, await fails(target, found))


async def test_the_fuzzer_finds_what_is_wrong_and_shortens_it() -> None:
    def wrong(data: bytes) -> None:
        if b"%" in data:
            raise RuntimeError

    target = Target(wrong, (b"/latest/meta-data/instance-id",))
    _, found = await feed(target, Random(7), list(target.seeds), 5.0)
    assert found is not None
    assert await shortened(target, found) == b"%"


async def test_the_fuzzer_finds_a_stall() -> None:
    def stalls(data: bytes) -> None:
        sum(range(20_000_000 if data else 0))

    assert await fails(Target(stalls, ()), b"x") is not None
    assert await fails(Target(stalls, ()), b"") is None


def test_changes_stay_within_bounds() -> None:
    random = Random(7)
    data = b"GET / HTTP/1.1\r\n"
    for _ in range(2000):
        data = changed(data, random, objects=False)
        assert len(data) <= 20_000
