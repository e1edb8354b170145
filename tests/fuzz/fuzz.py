"""Feed nonsense to everything that reads what pods, users and the API server write: `make fuzz`.

`fuzz.py [--seconds N] [--seed N] [TARGET...]`. Ends with status 1 and the input, made as short as it goes, where a
target fails: raises what it should not, answers 500, shows a secret, or works for over 100 ms.
"""

import argparse
import asyncio
import gc
import logging
import os
import sys
import tempfile
import time
import traceback
from inspect import isawaitable
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parents[2])]

from tests.fakes.pods_port import pods_port  # noqa: E402 - found by the line above when run as a program
from tests.fuzz.targets import Target, changed, targets  # noqa: E402

_STALL = 0.1
_SLICE = 0.5
_SHORTENINGS = 300


class StalledError(Exception):
    """A target worked for too long on one input."""


async def fails(target: Target, data: bytes) -> Exception | None:
    """What is wrong with what `target` does with `data`, or None.

    Only the thread's own time counts, without the garbage collector's, which depends on what ran before.
    """
    gc.disable()
    begun = time.thread_time()
    try:
        done = target.run(data)
        if isawaitable(done):
            await done
    except target.expected:
        pass
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return error
    finally:
        took = time.thread_time() - begun
        gc.enable()
    return StalledError(f"{took * 1000:.0f} ms of work") if took > _STALL else None


async def shortened(target: Target, data: bytes) -> bytes:
    """A part of `data` that fails as well."""
    size, tries = len(data) // 2, 0
    while size and tries < _SHORTENINGS:
        for at in range(0, len(data), size):
            tries += 1
            shorter = data[:at] + data[at + size :]
            if await fails(target, shorter):
                data = shorter
                break
        else:
            size //= 2
    return data


async def feed(target: Target, random: Random, pool: list[bytes], seconds: float) -> tuple[int, bytes | None]:
    """Feed for a while: how many inputs it took, and the first that failed."""
    count, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        data = changed(random.choice(pool), random, objects=target.objects)
        count += 1
        if await fails(target, data):
            return count, data
        if random.random() < 0.05 and len(data) < 2000:
            pool[random.randrange(len(pool))] = data if len(pool) > 64 else pool[0]
            pool.append(data)
            del pool[256:]
    return count, None


async def fuzz(seconds: float, seed: int, names: list[str]) -> int:
    """Feed all targets in turn; the exit status."""
    random, counts = Random(seed), dict[str, int]()
    with tempfile.TemporaryDirectory(prefix="k2i-fuzz-") as state_dir:
        async with pods_port(state_dir) as port:
            chosen = {name: target for name, target in targets(port).items() if not names or name in names}
            pools = {name: list(target.seeds) for name, target in chosen.items()}
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                for name, target in chosen.items():
                    turn = min(_SLICE, seconds / len(chosen)) * target.share
                    count, found = await feed(target, random, pools[name], turn)
                    counts[name] = counts.get(name, 0) + count
                    if found is not None:
                        await report(name, target, found, seed)
                        return 1
    for name, count in counts.items():
        print(f"{name:12} {count:9,} inputs, nothing found")  # noqa: T201 - a program's output
    return 0


async def report(name: str, target: Target, data: bytes, seed: int) -> None:
    """Show what was found."""
    data = await shortened(target, data)
    error = await fails(target, data)
    print(f"{name} fails (seed {seed}) with the input\n\n    {data!r}\n")  # noqa: T201
    if error is not None:
        traceback.print_exception(error, file=sys.stdout)
    print(f"\nAdd it to FOUND[{name!r}] in tests/fuzz/targets.py, then mend what it found.")  # noqa: T201


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS") or 300))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    return asyncio.run(fuzz(given.seconds, given.seed, given.targets))


if __name__ == "__main__":
    sys.exit(main())
