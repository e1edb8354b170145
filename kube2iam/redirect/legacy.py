"""The iptables (legacy) backend: chains of our own, `KUBE2IAM`, in nat and filter, for IPv4 and IPv6.

xt_chain says what they hold.
python-iptables drives libiptc, which is the legacy variant whatever `iptables` on this machine means. Its habits that
this module minds (seen in 1.2.0): with autocommit a failed commit is swallowed; a Table is one object for ever, and
shows old rules until `refresh`; a closed one crashes the process when it is asked; and it does not take the lock that
all iptables programs share. One thread does all of it.
"""

import asyncio
import fcntl
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from kube2iam.redirect.routes import families
from kube2iam.redirect.rule import Family, MissingToolError, RedirectError, RedirectRule, Status
from kube2iam.redirect.xt_chain import HOOKS, amiss, foreign, plan, read, rule_of, write

T = TypeVar("T")

_OTHERS = ("KUBE-", "CNI-", "cali-", "CILIUM_", "FLANNEL-", "WEAVE")
_TABLES = {family: Path(f"/proc/thread-self/net/{family.table}_tables_names") for family in Family}
_LOCK = "/run/xtables.lock"
_LOCK_TIMEOUT = 5.0
_LOCK_PAUSE = 0.02


class LegacyBackend:
    """Redirects with python-iptables. Needs CAP_NET_ADMIN, CAP_NET_RAW and /run/xtables.lock of the host."""

    name = "legacy"

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="iptables")

    def require(self) -> None:
        """Raise MissingToolError if python-iptables or what it needs is not installed."""
        _library()

    async def ensure(self, rule: RedirectRule) -> str:
        """Make the chains say `rule`; returns what had to be mended, empty if nothing. Raises RedirectError."""
        return await self._run(functools.partial(_ensure, rule))

    async def remove(self) -> bool:
        """Take our chains away; returns whether there were any. Raises RedirectError."""
        return await self._run(_remove)

    async def status(self) -> Status:
        """What our chains say, and who else redirects."""
        return await self._run(_status)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def in_use() -> bool:
    """Whether this node's cluster network keeps its rules in the legacy tables.

    Reads tables that exist already and makes none. Raises MissingToolError if there are some that cannot be read.
    """
    for family, name in _existing():
        with _open(family, name) as table:
            if any(chain.name.startswith(_OTHERS) for chain in table.chains):
                return True
    return False


def _ensure(rule: RedirectRule) -> str:
    mended = []
    existing = set(_existing())
    for family in families(rule):
        for name, entries in plan(family, rule).items():
            if not entries and (family, name) not in existing:
                continue
            with _open(family, name) as table:
                fault = amiss(table, family, entries)
            if fault:
                with _lock(), _open(family, name) as table:
                    write(table, family, entries)
                mended.append(f"{family.table} {name}: {fault}")
    return ", ".join(mended)


def _remove() -> bool:
    ours = [(family, name) for family, name in _existing() if _ours(family, name)]
    for family, name in reversed(ours):
        with _lock(), _open(family, name) as table:
            write(table, family, ())
    return bool(ours)


def _status() -> Status:
    existing = list(_existing())
    found, others = {}, []
    for family in Family:
        tables = [name for table_family, name in existing if table_family is family]
        if any(_ours(family, name) for name in tables):
            found[family] = _read(family, tables)
        if "nat" in tables:
            with _open(family, "nat") as table:
                others += [f"{family.table} nat PREROUTING: {line}" for line in foreign(table, family)]
    return Status.of("legacy", found, families=families(), foreign=others)


def _ours(family: Family, name: str) -> bool:
    """Whether there is anything of ours in a table."""
    with _open(family, name) as table:
        return bool(amiss(table, family, ()))


def _read(family: Family, tables: Sequence[str]) -> RedirectRule | None:
    """The rule that our chains say; None if they are not as `write` leaves them."""
    chains = {}
    for name in tables:
        with _open(family, name) as table:
            chains[name] = read(table, family)
    rule = rule_of(chains, family)
    for name, entries in plan(family, rule).items():
        if name in tables:
            with _open(family, name) as table:
                if amiss(table, family, entries):
                    return None
        elif entries:
            return None
    return rule


def _existing() -> Iterator[tuple[Family, str]]:
    """The tables of ours that the kernel has in this network namespace; reading another one would make it."""
    for family, path in _TABLES.items():
        with suppress(OSError):
            names = path.read_text().split()
            yield from ((family, name) for name in HOOKS if name in names)


@contextmanager
def _open(family: Family, name: str) -> Iterator[Any]:
    """A table as it is in the kernel now. What is changed counts from `commit`; raises RedirectError."""
    iptc = _library()
    table = None
    try:
        table = (iptc.Table if family is Family.IPV4 else iptc.Table6)(name, autocommit=False)
        table.refresh()
        yield table
    except iptc.IPTCError as error:
        raise _refusal(str(error)) from error
    finally:
        if table is not None:
            table.close()


@contextmanager
def _lock() -> Iterator[None]:
    """Hold the lock that all iptables programs of this node share; raises RedirectError after some seconds."""
    path = os.environ.get("XTABLES_LOCKFILE", _LOCK)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RedirectError(f"{path}: {error.strerror}: the pod must mount this file of the node") from error
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while not _flock(file):
            if time.monotonic() > deadline:
                raise RedirectError(f"{path} was held by another program for {_LOCK_TIMEOUT:.0f} s: try again")
            time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(file)


def _flock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@functools.cache
def _library() -> Any:
    """python-iptables, whose import fails in many ways where iptables is missing.

    It looks for a directory of extensions, which we do not use: it is given one, so that it need not run ldconfig.
    """
    given = os.environ.get("XTABLES_LIBDIR")
    os.environ.setdefault("XTABLES_LIBDIR", "/usr/lib/xtables")
    try:
        with warnings.catch_warnings(action="ignore"):
            import iptc  # noqa: PLC0415 - an extra, and only this backend needs it
    except Exception as error:
        raise MissingToolError(
            "the legacy backend needs python-iptables and iptables: install kube2iam[legacy] and the package iptables, "
            f"or use --redirect-backend=nft ({error})"
        ) from error
    finally:
        if given is None:
            del os.environ["XTABLES_LIBDIR"]
    return iptc


_MENDS: Mapping[str, str] = {
    "Permission denied": "the process needs the capabilities NET_ADMIN and NET_RAW",
    "does not exist": "this kernel has no legacy iptables: use --redirect-backend=nft",
    "Protocol not available": "this kernel has no legacy iptables: use --redirect-backend=nft",
    "temporarily unavailable": "another program changed the table at the same moment: try again",
}


def _refusal(said: str) -> RedirectError:
    said = said.replace("b'", "").rstrip("'")
    mend = next((mend for sign, mend in _MENDS.items() if sign in said), "")
    return RedirectError(f"iptables (legacy): {said}" + (f": {mend}" if mend else ""))
