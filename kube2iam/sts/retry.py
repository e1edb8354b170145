"""Things that must work once before the agent is ready, tried until they do."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST, _LONGEST = 0.2, 10.0
_PASSWORD = re.compile(r"//[^/\s]*@")
"""In a URL."""


async def until_it_works(
    trouble: str, attempt: Callable[[], Awaitable[T]], *, heard: Callable[[str], None] = lambda _reason: None
) -> T:
    """The first result of `attempt`, tried again after 0.2 s, twice that, and so on up to every 10 s.

    Each new reason for a failure is said once in the log, as `trouble`, and `heard`; nothing is guessed meanwhile.
    """
    pause, said = _FIRST, ""
    while True:
        try:
            return await attempt()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said and tried again
            reason = _PASSWORD.sub("//…@", f"{type(error).__name__}: {error}")
            if reason != said:
                log.warning(trouble, extra={"error": reason})
                heard(reason)
                said = reason
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST)
