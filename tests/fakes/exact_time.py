"""An event loop without I/O whose time is exact: it moves to the next timer at once, so a month passes in seconds.

For code that only waits for timers and its own futures. Where nothing is left to wait for, it says so instead of
hanging. Code that talks over sockets runs in `virtual_time`.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ParamSpec

P = ParamSpec("P")


class _NoIo(selectors.BaseSelector):
    """Holds the loop's own wake-up socket and never looks at it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen: everything waits and no timer is set")
        self.now += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, int(fileobj), events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class ExactTimeLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 and is the sum of what was waited for."""

    def __init__(self) -> None:
        self._io = _NoIo()
        super().__init__(self._io)

    def time(self) -> float:
        return self._io.now


def exact_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test in an ExactTimeLoop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=ExactTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
