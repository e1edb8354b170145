"""Health in three words: live (the loop turns), ready (this pod can do its job), degraded (something around it can't).

A dependency's fault is never a reason to restart the agent, so it never touches liveness, and readiness only where
pods would get a wrong answer.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

PERIOD = 30.0
"""Seconds between two looks at the metadata service, as Go kube2iam's."""

_REMIND = 30.0
"""Seconds until what is still missing is said again."""

_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at; `problem` says in a sentence what is wrong, or None."""

    name: str
    problem: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to an operator or a probe."""

    status: int
    content_type: str
    body: bytes


class Health:
    """What the probes say."""

    def __init__(self, *, ready: Sequence[Check], degraded: Sequence[Check]) -> None:
        self._ready = ready
        self._degraded = degraded
        self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether nothing stands against serving pods."""
        return not self.missing()

    def troubles(self) -> dict[str, str]:
        """The degradations that there are, by name."""
        found = ((check.name, check.problem()) for check in self._degraded)
        return {name: problem for name, problem in found if problem is not None}

    @property
    def causes(self) -> list[str]:
        """The names of all degradations that there may be."""
        return [check.name for check in self._degraded]

    def missing(self) -> dict[str, str]:
        """What stands against being ready, by name."""
        found = ((check.name, check.problem()) for check in self._ready)
        stopping = {"stopping": "the agent is shutting down"} if self.stopping else {}
        return stopping | {name: problem for name, problem in found if problem is not None}

    def livez(self) -> Page:
        """200 while the event loop turns: it does, since it answers."""
        return Page(200, _TEXT, b"ok\n")

    def readyz(self, *, verbose: bool = False) -> Page:
        """200 when ready, else 503; with `verbose` a line for each check, in the form of Kubernetes' own components."""
        missing = self.missing()
        status = 503 if missing else 200
        if not verbose and not missing:
            return Page(status, _TEXT, b"ok\n")
        lines = [f"[+]{check.name} ok" for check in self._ready if check.name not in missing]
        lines += [f"[-]{name} failed: {problem}" for name, problem in missing.items()]
        lines += [f"[!]{name} degraded: {problem}" for name, problem in self.troubles().items()]
        lines.append("readyz check failed" if missing else "readyz check passed")
        return Page(status, _TEXT, ("\n".join(lines) + "\n").encode())


async def announce(health: Health, *, soon: float = 0.1, calm: float = 1.0) -> None:
    """Say in the log when the agent becomes ready or stops being so, and until then what it waits for. For ever.

    It looks every `soon` seconds while not ready, every `calm` seconds while ready.
    """
    said: dict[str, str] | None = None
    silent = 0.0
    while True:
        missing = health.missing()
        if said is None or set(missing) != set(said) or (missing and silent >= _REMIND):
            if missing:
                log.log(
                    logging.WARNING if said == {} else logging.INFO, "not ready", extra={"missing": _sentence(missing)}
                )
            else:
                log.info("ready", extra={"degraded": _sentence(health.troubles()) or "nothing"})
            said, silent = missing, 0.0
        pause = soon if missing else calm
        await asyncio.sleep(pause)
        silent += pause


def _sentence(problems: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {problem}" for name, problem in problems.items())


class InstanceCheck:
    """Asks the metadata service for the instance's id from time to time: upstream's health check."""

    def __init__(self, fetch: Callable[[], Awaitable[str]], *, host_ip: str) -> None:
        """`fetch` returns the instance id or raises an exception whose text names the fault."""
        self._fetch = fetch
        self._host_ip = host_ip
        self.instance_id = ""
        self.problem: str | None = "the metadata service was not asked yet"

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD)

    async def look(self) -> None:
        """Look once; raises nothing."""
        try:
            self.instance_id = await self._fetch()
            self.problem = None
        except Exception as error:  # noqa: BLE001 - whatever it is must not end the loop; `fetch` has logged it
            self.problem = f"the metadata service does not tell the instance id: {error}"

    def healthz(self) -> Page:
        """Upstream's body. 200 also while the metadata service is away: manifests use this for liveness."""
        body = json.dumps({"hostIP": self._host_ip, "instanceId": self.instance_id}, separators=(",", ":"))
        return Page(200, "application/json", f"{body}\n".encode())
