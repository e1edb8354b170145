"""A test run that is ended from outside."""

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENDED = """
import asyncio, contextlib

@contextlib.asynccontextmanager
async def started():
    try:
        print("it runs", flush=True)
        yield
    finally:
        print("it is tidied", flush=True)

async def test_something_long():
    async with started():
        await asyncio.sleep(60)
"""


def test_what_a_test_started_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "test_long.py").write_text(ENDED)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += [
        "-o",
        "asyncio_mode=auto",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if "it runs" in line:
                run.send_signal(signal.SIGTERM)
                break
        assert "it is tidied" in run.stdout.read()
    assert run.returncode == 2
