"""`kube2iam redirect install|remove|status`: the rule by hand, in init containers and when uninstalling."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from kube2iam.redirect.backends import AUTO, BACKENDS, RedirectBackend, choose, clear, others
from kube2iam.redirect.none import NoneBackend
from kube2iam.redirect.routes import follow
from kube2iam.redirect.rule import MissingToolError, RedirectError, RedirectRule
from kube2iam.settings import Settings

T = TypeVar("T")


def run(action: str, settings: Settings) -> int:
    """Carry out one of `ACTIONS`; returns the exit status. An error is one line on stderr, and status 1.

    install needs --host-ip, and knows --app-port and --host-interface; the others need nothing. With `auto`, remove and
    status look at what any backend left. status exits with 0 if the rule is there, whole, and with 1 if it is not.
    """
    try:
        return asyncio.run(ACTIONS[action](settings))
    except RedirectError as error:
        sys.stderr.write(f"kube2iam redirect {action}: {error}\n")
        return 1


async def _install(settings: Settings) -> int:
    rule = RedirectRule.of(settings.host_ip, settings.app_port, settings.host_interface)
    backend = await choose(settings.redirect_backend)
    mended = await backend.ensure(follow(rule, tuple)())
    await clear(others(backend))
    _say(*(await backend.status()).lines, f"{backend.name}: {mended or 'nothing had to be changed'}")
    return 0


async def _remove(settings: Settings) -> int:
    async def remove(backend: RedirectBackend) -> bool:
        removed = await backend.remove()
        _say(f"{backend.name}: {'removed' if removed else 'nothing to remove'}")
        return True

    return 0 if any(await _each(settings.redirect_backend, remove)) else 1


async def _status(settings: Settings) -> int:
    async def status(backend: RedirectBackend) -> bool:
        found = await backend.status()
        _say(*found.lines)
        return found.present

    return 0 if any(await _each(settings.redirect_backend, status)) else 1


ACTIONS: Mapping[str, Callable[[Settings], Coroutine[Any, Any, int]]] = {
    "install": _install,
    "remove": _remove,
    "status": _status,
}


async def _each(name: str, act: Callable[[RedirectBackend], Coroutine[Any, Any, T]]) -> Sequence[T]:
    """What `act` says of the backend `name`, or for `auto` of each that may have left something and can be asked."""
    if name != AUTO:
        return [await act(BACKENDS[name]())]
    said = []
    for backend in [make() for candidate, make in BACKENDS.items() if candidate != NoneBackend.name]:
        try:
            said.append(await act(backend))
        except MissingToolError as error:
            _say(f"{backend.name}: not looked at: {error}")
    return said


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
