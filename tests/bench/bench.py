"""What the agent answers in a second, beside a bare `aiohttp.web.Server` with the same bytes, and how long pods wait.

`python -m tests.bench.bench [--seconds 2] [--rounds 3] [--json]`. The agent is the real executable on a full node (110
pods, 300 namespaces). Servers run on the first core, the load and everything around the agent on the last one; the
rounds alternate between the servers, and medians are shown.
"""
# ruff: noqa: T201 - a table is what it is for

import argparse
import asyncio
import json
import os
import shutil
import sys
from collections.abc import Sequence

from tests.bench import front, herds
from tests.bench.front import Row
from tests.bench.load import cores

_COLUMNS = ("rate", "requests/s", ",.0f"), ("p50", "p50 ms", ".2f"), ("p99", "p99 ms", ".2f"), ("cpu", "cpu us", ".1f")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 1 if an answer failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2, help="of each run of wrk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="front,herds", help="parts, with commas between them")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    for program in ("wrk", "taskset"):
        if shutil.which(program) is None:
            print(f"{program} is not installed", file=sys.stderr)
            return 2
    os.sched_setaffinity(0, {cores()[1]})
    return asyncio.run(_measure(given))


async def _measure(given: argparse.Namespace) -> int:
    parts = given.only.split(",")
    rows: list[Row] = []
    figures: dict[str, float] = {}
    if "front" in parts:
        rows, figures = await front.measure(given.seconds, given.rounds)
        if not given.json:
            _show_rows(rows)
    if "herds" in parts:
        figures |= await herds.measure(given.rounds)
    if given.json:
        print(json.dumps({"front": rows, "figures": figures}, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:76}{value:>10.2f}")
    return 1 if any(row["failed"] for row in rows) else 0


def _show_rows(rows: Sequence[Row]) -> None:
    print(f"{'load':34}{'server':18}{'times':>8}" + "".join(f"{title:>12}" for _, title, _ in _COLUMNS))
    for row in rows:
        figures = "".join(f"{format(row[name], form):>12}" for name, _, form in _COLUMNS)
        print(f"{row['load']:34}{row['server']:18}{row['times']:>8.2f}{figures}")


if __name__ == "__main__":
    sys.exit(main())
