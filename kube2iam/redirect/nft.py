"""The nftables backend: a table of our own, `kube2iam`, in the families `ip` and `ip6`.

Two families instead of `inet`, because nat chains in `inet` need Linux 5.2. The table is loaded in one transaction,
so that no packet meets half a rule, and no other table is ever touched. Other tools' `iptables -F` does not reach it.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from kube2iam.redirect.nft_table import TABLE, Object, State, objects_of, read, replacing, state_of, table_of
from kube2iam.redirect.routes import families
from kube2iam.redirect.rule import Family, MissingToolError, RedirectError, RedirectRule, Status

_TIMEOUT = 10.0
_MISSING = "nft is not installed: install the package nftables, or use --redirect-backend=legacy"


class NftBackend:
    """Redirects with `nft`. Needs CAP_NET_ADMIN."""

    name = "nft"

    def __init__(self) -> None:
        self._loaded: dict[Family, tuple[State, State | None]] = {}

    def require(self) -> None:
        """Raise MissingToolError if nft is not installed."""
        if shutil.which("nft") is None:
            raise MissingToolError(_MISSING)

    async def ensure(self, rule: RedirectRule) -> str:
        """Make the tables say `rule`; returns what had to be mended, empty if nothing. Raises RedirectError."""
        wanted = families(rule)
        amiss = []
        for family in wanted:
            found = await _list(family)
            if not self._fits(family, rule, found):
                amiss.append(f"table {family.table} {TABLE} was {'missing' if found is None else 'different'}")
        if amiss:  # then both, because what happened to one may happen to the other just now
            await _load([command for family in wanted for command in replacing(family, rule)])
            for family in wanted:
                self._loaded[family] = state_of(objects_of(family, rule)), await _list(family)
        return ", ".join(amiss)

    def _fits(self, family: Family, rule: RedirectRule, found: State | None) -> bool:
        wanted = state_of(objects_of(family, rule))
        # Another version of nft may print what we load in other words. What it printed just after we loaded it is then
        # what to compare with, so that a matter of spelling is not taken for somebody's change.
        return found == wanted or (found is not None and self._loaded.get(family) == (wanted, found))

    async def remove(self) -> bool:
        """Take our tables away; returns whether there were any. Raises RedirectError."""
        there = [family for family in Family if await _list(family) is not None]
        if there:
            await _load([{"delete": table_of(family)} for family in there])
        return bool(there)

    async def status(self) -> Status:
        """What our tables say, and who else redirects."""
        tables = {family: table for family in Family if (table := await _list(family)) is not None}
        found = {family: read(family, table) for family, table in tables.items()}
        return Status.of(self.name, found, families=families(), foreign=await _foreign())


async def _list(family: Family) -> State | None:
    """Our table in `family` as it is in the kernel, or None."""
    try:
        listing = await _nft("-j", "list", "table", family.table, TABLE)
    except _AbsentError:
        return None
    return state_of(json.loads(listing)["nftables"])


async def _load(commands: list[Object]) -> None:
    """Carry out `commands`, all or none of them."""
    await _nft("-j", "-f", "-", document=json.dumps({"nftables": commands}))


async def _foreign() -> list[str]:
    """Rules that the iptables of other tools (its nft variant) keeps for the metadata address, as nft prints them."""
    try:
        listing = await _nft("list", "chain", "ip", "nat", "PREROUTING")
    except RedirectError:
        return []
    return [f"ip nat PREROUTING: {line.strip()}" for line in listing.splitlines() if Family.IPV4.metadata in line]


class _AbsentError(RedirectError):
    """What was to be listed is not there."""


async def _nft(*arguments: str, document: str = "") -> str:
    """What `nft` prints; raises RedirectError."""
    try:
        with _in_memory(document) as stdin:
            process = await asyncio.create_subprocess_exec(
                "nft",
                *arguments,
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
            )
    except FileNotFoundError:
        raise MissingToolError(_MISSING) from None
    except OSError as error:
        raise RedirectError(f"nft cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(_TIMEOUT):
            output, errors = await process.communicate()
    except TimeoutError:
        raise RedirectError(f"nft did not answer within {_TIMEOUT:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise _refusal(errors.decode(errors="replace"))
    return output.decode()


@contextmanager
def _in_memory(document: str) -> Iterator[IO[bytes]]:
    """`document` as a file. nft opens /dev/stdin anew, which uvloop's pipes, being sockets, do not allow."""
    with os.fdopen(os.memfd_create("nft"), "w+b") as file:
        file.write(document.encode())
        file.seek(0)
        yield file


_MENDS: Mapping[str, str] = {
    "Operation not permitted": "the process needs the capability NET_ADMIN",
    "not supported": "this kernel has no nftables nat: use --redirect-backend=legacy",
    "JSON support not compiled-in": "this nft was built without JSON: install one that was",
}


def _refusal(errors: str) -> RedirectError:
    said = next((line for line in errors.splitlines() if line.strip()), "no reason given")
    if "No such file or directory" in said and "list" in errors:
        return _AbsentError(said)
    mend = next((mend for sign, mend in _MENDS.items() if sign in errors), "")
    return RedirectError(f"nft: {said.removeprefix('Error: ').strip()}" + (f": {mend}" if mend else ""))
