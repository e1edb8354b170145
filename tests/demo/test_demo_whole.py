"""The demo itself, as `make demo ONCE=1` runs it, and what is left of it afterwards."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kube2iam.demo.cast import PODS

DEMO = [str(Path(sys.executable).with_name("kube2iam")), "demo"]
TIME_LIMIT = 90.0
"""Seconds for a whole run on a machine that is busy with other things."""


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    before = traces()
    yield
    assert traces() == before


def traces() -> dict[str, object]:
    """What the demo could leave on this machine: links, rules, named namespaces, mounts, files."""
    links = {link["ifname"] for link in json.loads(said("ip", "-json", "link"))}
    return {
        "links": {name for name in links if name in {"cni0", "veth0", "veth1"}},
        "rules": {line for line in said("nft", "list", "tables").splitlines() if "kube2iam" in line},
        "mounts": Path("/proc/self/mounts").read_text().count("kube2iam-demo"),
        "files": {path.name for path in Path(tempfile.gettempdir()).iterdir() if "kube2iam-demo" in path.name},
    }


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


def children(pid: int) -> set[int]:
    """Every living descendant, once two looks agree: threads come and go, and hand their children on."""
    seen, now = None, _children(pid)
    while now != seen:
        seen, now = now, _children(pid)
    return now


def _children(pid: int) -> set[int]:
    own: set[int] = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                own.update(map(int, (task / "children").read_text().split()))
    return own.union(*map(_children, own))


def wait_until_gone(pids: set[int]) -> None:
    """Fail unless each process ends within ten seconds."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([descriptor], [], [], 10)[0], Path(f"/proc/{pid}/cmdline").read_text()
        finally:
            os.close(descriptor)


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*DEMO, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def read_until(demo: subprocess.Popen[str], word: str) -> str:
    """The demo's progress up to the line with `word`."""
    assert demo.stderr is not None
    lines = []
    for line in demo.stderr:
        lines.append(line)
        if word in line:
            return line
    pytest.fail(f"never said {word}:\n{''.join(lines)}")


def test_two_demos_at_once_are_both_right() -> None:
    with running("--once", "--json") as one, running("--once", "--json") as other:
        for demo in (one, other):
            out, err = demo.communicate(timeout=TIME_LIMIT)
            assert demo.returncode == 0, out + err
            told = json.loads(out)
            assert told["ok"]
            assert all(told["checks"].values())
            assert [pod["pod"] for pod in told["pods"]] == [spec.full_name for spec in PODS]
            assert [pod["faults"] for pod in told["pods"]] == [[]] * 5
            (typo,) = [pod for pod in told["pods"] if pod["pod"] == "shop/typo"]
            assert "did you mean" in typo["why"]


@pytest.mark.parametrize(
    ("stage", "number", "status"),
    [
        ("network", signal.SIGINT, 130),
        ("AWS", signal.SIGTERM, 130),
        ("cluster", signal.SIGINT, 130),
        ("agent", signal.SIGHUP, 130),
        ("cluster", signal.SIGKILL, -signal.SIGKILL),
        ("agent", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_an_interrupted_demo_leaves_nothing(stage: str, number: signal.Signals, status: int) -> None:
    with running("--once") as demo:
        read_until(demo, stage)
        family = children(demo.pid)
        assert len(family) >= 6, "pods and AWS are held by processes"
        demo.send_signal(number)
        out, err = demo.communicate(timeout=20)
        assert demo.returncode == status, out + err
        assert "Traceback" not in err
        wait_until_gone(family)


def test_it_stays_up_until_ctrl_c_and_tells_what_can_be_tried() -> None:
    with running() as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if "Ctrl-C ends it all" in line:
                break
        commands = [line.strip() for line in lines if "nsenter" in line and "PATCH" not in line]
        answer = subprocess.run(commands[0], shell=True, capture_output=True, text=True, check=True, timeout=10)  # noqa: S602
        assert answer.stdout.endswith("reports")
        family = children(demo.pid)
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=20)
        assert demo.returncode == 0, err
        wait_until_gone(family)


def test_a_broken_half_way_leaves_nothing(tmp_path: Path) -> None:
    """Without its CLI moto's clients fail; without the agent's executable nothing starts. One line says so."""
    program = (
        "import sys; from kube2iam.demo import world; sys.exit(world.inside(sys.argv[1:], command=['/bin/false']))"
    )
    inside = ["unshare", "--mount", "--net", "--", sys.executable, "-P", "-c", program, "--outside=other", "--once"]
    ended = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert ended.returncode == 1
    assert "kube2iam demo: the agent did not become ready" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_any_right_one_line_says_why_and_what_to_do() -> None:
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *DEMO, "--once"]
    ended = subprocess.run(bare, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert "run it as root, or allow user namespaces" in ended.stderr
