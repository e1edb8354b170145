"""Namespaces of the demo's own: it runs in them from its first step, so the machine's own network never changes.

The kernel takes namespaces away with their last process, and with them every link, rule, route and scratch file, so
nothing is left behind however the demo ends.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kube2iam.demo.failure import DemoError

PROGRAMS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "sleep": "coreutils",
    "mount": "mount",
}
"""What the demo runs, and the Debian package that brings it."""

ROOT = ("unshare", "--mount", "--net")
USER = ("unshare", "--user", "--map-root-user", "--mount", "--net")

ADVICE = (
    "the demo needs namespaces of its own, and this kernel gives none to this user ({reason}): "
    "run it as root, or allow user namespaces "
    "(sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000; "
    "Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0)"
)


def enter(argv: Sequence[str]) -> None:
    """Replace this process by the demo in new namespaces; returns only by raising DemoError."""
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # not there for Debian's plain users
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if not (shutil.which("nft") or shutil.which("iptables")):
        missing.add("nftables")
    if missing:
        raise DemoError(f"missing system packages: apt-get install {' '.join(sorted(missing))}")
    if importlib.util.find_spec("moto") is None or not Path(sys.executable).with_name("aws").exists():
        raise DemoError("missing Python packages: pip install 'kube2iam[demo]'")
    prefix = _allowed()
    inside = [sys.executable, "-P", "-m", "kube2iam.demo", f"--outside={network_namespace()}", *argv]
    os.execvp(prefix[0], [*prefix, "--", *inside])  # noqa: S606  # the same program goes on in its own namespaces


def network_namespace() -> str:
    """The kernel's name of the network namespace that this process is in."""
    return str(Path("/proc/self/ns/net").readlink())


def scratch(avoid: Sequence[Path]) -> Path:
    """An empty folder in memory that only this mount namespace sees; it never hides a path in `avoid`."""
    for place in (Path("/run"), Path("/mnt"), Path("/srv")):
        if place.is_dir() and not any(path.is_relative_to(place) for path in avoid):
            mount = ["mount", "-t", "tmpfs", "-o", "mode=0755", "kube2iam-demo", str(place)]
            mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
            if mounted.returncode:
                raise DemoError(f"no scratch memory: {mounted.stderr.strip()}")
            return place
    raise DemoError("found no folder to mount scratch memory on (/run, /mnt and /srv are missing or in use)")


def _allowed() -> Sequence[str]:
    """The first of the ways into new namespaces in which links can be changed too."""
    reasons = []
    for prefix in (ROOT, USER):
        trial = subprocess.run(
            [*prefix, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False, timeout=10
        )
        if trial.returncode == 0:
            return prefix
        reasons.append((trial.stderr.strip().splitlines() or ["no reason given"])[-1])
    raise DemoError(ADVICE.format(reason=reasons[0 if os.geteuid() == 0 else -1]))
