"""What the agent answers in a second, beside a bare `aiohttp.web.Server` with the same bytes; and what it takes.

`python -m tests.bench.bench [--seconds 1] [--rounds 7] [--only front] [--json]`. The agent is the real executable on a
full node (110 pods, 300 namespaces). Servers run on the first core, the load and everything around the agent on the
last one; the servers take turns in each of many short rounds, because a machine's mood changes, and medians are shown.
The exit status is 1 where a bar is missed or an answer failed.
"""
# ruff: noqa: T201 - a table is what it is for

import argparse
import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

from tests.bench import footprint, front, herds
from tests.bench.front import Row
from tests.bench.load import cores

PARTS = "footprint", "front", "herds"
BARS: Mapping[str, float] = {
    **footprint.BARS,
    front.GROWTH: 10,
    front.DEFENCE: 10,
    herds.COLD: 0.8,
    herds.PREFETCHED: 5,
    herds.CALLS: 1,
}
"""At most."""
_KEPT, _NEW = 2.2, 2.5
"""Times the bare server's requests/s, at least; and p99 no worse than its."""
_IDLE = 10.0
_TIMES = 3
_COLUMNS = ("rate", "requests/s", ",.0f"), ("p50", "p50 ms", ".2f"), ("p99", "p99 ms", ".2f"), ("cpu", "cpu us", ".1f")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 1 if a bar is missed or an answer failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1, help="of each run of wrk")
    parser.add_argument("--rounds", type=int, default=7, help="of the load; all else is measured three times")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    missing = [program for program in ("wrk", "taskset") if shutil.which(program) is None]
    if missing:
        print(f"bench: install {' and '.join(missing)}", file=sys.stderr)
        return 2
    return asyncio.run(_measure(given))


async def _measure(given: argparse.Namespace) -> int:
    parts = (given.only,) if given.only else PARTS
    rows: list[Row] = []
    figures: dict[str, float] = {}
    _to_last_core()
    if "footprint" in parts:
        figures |= await footprint.measure(_TIMES, _IDLE, legacy=False)
    if "front" in parts:
        rows, under_load = await front.measure(given.seconds, given.rounds)
        figures |= under_load
    if "herds" in parts:
        figures |= await herds.measure(_TIMES)
    if given.json:
        print(json.dumps({"front": rows, "figures": figures}, indent=2))
    else:
        _show(rows, figures)
    missed = list(_missed(rows, figures))
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    return 1 if missed else 0


def _to_last_core() -> None:
    """Have this process, which plays all that is around the agent, leave the first core to the servers."""
    os.sched_setaffinity(0, {cores()[1]})


def _missed(rows: Sequence[Row], figures: Mapping[str, float]) -> Iterator[str]:
    bare = {row["load"]: row for row in rows if row["server"] == front.BARE}
    for row in rows:
        if row["failed"]:
            yield f"{row['load']}, {row['server']}: {row['failed']} answers failed"
        if row["server"] == front.AGENT:
            if row["times"] < _least(row):
                yield f"{row['load']}: {row['times']:.2f} times the bare server's requests/s, at least {_least(row)}"
            if row["p99"] > bare[row["load"]]["p99"]:
                yield f"{row['load']}: a p99 of {row['p99']:.2f} ms is worse than the bare server's"
    for name, value in figures.items():
        if value > BARS.get(name, value):
            yield f"{name}: {value:.2f}, at most {BARS[name]:g}"


def _least(row: Row) -> float:
    return _NEW if "new" in row["load"] else _KEPT


def _show(rows: Sequence[Row], figures: Mapping[str, float]) -> None:
    if rows:
        print(f"{'load':34}{'server':18}" + "".join(f"{title:>12}" for _, title, _ in _COLUMNS) + f"{'times':>8}")
    for row in rows:
        columns = "".join(f"{format(row[name], form):>12}" for name, _, form in _COLUMNS)
        bar = f"   at least {_least(row)}" if row["server"] == front.AGENT else ""
        print(f"{row['load']:34}{row['server']:18}{columns}{row['times']:>8.2f}{bar}")
    for name, value in figures.items():
        bar = f"   at most {BARS[name]:g}" if name in BARS else ""
        print(f"{name:76}{value:>10.2f}{bar}")


if __name__ == "__main__":
    sys.exit(main())
