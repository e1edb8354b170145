"""An event loop that skips waiting: when nothing is ready, its clock jumps to the next timer.

Real sockets of this process still work: the loop looks at them for a few milliseconds before it jumps, so hours of
back-off against a server in the same loop pass in an instant. While a thread works for the loop, nothing is skipped.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, Unpack

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_LOOK = 0.003
"""Real seconds that a socket gets before the clock jumps."""


class _SkippingSelector(selectors.BaseSelector):
    def __init__(self) -> None:
        self.skipped = 0.0
        self.threads = 0
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= _LOOK or self.threads:
            return self._real.select(timeout)
        ready = self._real.select(_LOOK)
        if not ready:
            self.skipped += timeout - _LOOK
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` is real time plus everything that was skipped."""

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return super().time() + self._skipping.skipped

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        self._skipping.threads += 1
        work = super().run_in_executor(executor, func, *args)
        work.add_done_callback(self._thread_ended)
        return work

    def _thread_ended(self, _work: asyncio.Future[T]) -> None:
        self._skipping.threads -= 1


def virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test in a VirtualTimeLoop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
